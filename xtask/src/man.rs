//! Man pages: the commands from clap's definitions, the files from the comments of those that are shipped.

use anyhow::{Context, Result};
use clap::Command;
use clap_mangen::Man;
use roff::{Inline, Roff, bold, roman};

use crate::document::{self, Block};
use crate::settings;

const POLICY: &str = include_str!("../../policies/00-default.toml");
const MANUAL: &str = "System Administration";
const FORMATS: &str = "File Formats";

const FILES: [(&str, &str); 8] = [
    ("/etc/enforcer/enforcer.toml", "The settings: enforcer.toml(5)."),
    (
        "/etc/enforcer/policies.d/*.toml",
        "What is denied: enforcer-policy(5). Read again when a file changes.",
    ),
    ("/run/enforcer/control.sock", "What the commands talk to the daemon through. For root alone."),
    ("/sys/fs/bpf/enforcer", "The pinned programs and maps: they enforce while no daemon runs."),
    ("/var/lib/enforcer/state.json", "Which addresses were denied for which names, for the next boot."),
    (
        "/var/lib/enforcer/state.last-good",
        "A copy of the policy files and lists in force: what a start that finds errors in the files enforces.",
    ),
    ("/var/log/enforcer", "For sinks that write to files."),
    ("/usr/share/doc/enforcer/examples", "Policies to begin with."),
];

const SIGNALS: [(&str, &str); 2] = [
    ("SIGHUP", "Policies are read again, and files of sinks are opened anew (systemctl reload enforcer)."),
    (
        "SIGTERM, SIGINT",
        "The daemon stops. It lets go of what is denied if on_stop is \"release\" and systemd does not restart it \
         or shut the system down.",
    ),
];

/// Names and contents.
pub(crate) fn pages(date: &jiff::Zoned) -> Result<Vec<(String, Vec<u8>)>> {
    let date = date.strftime("%Y-%m-%d").to_string();
    let mut command = enforcer::cli::command().disable_help_subcommand(true);
    command.build();
    let subcommands: Vec<Command> = command.get_subcommands().cloned().collect();
    let others = subcommands.iter().map(|sub| format!("enforcer-{}(8)", sub.get_name()));
    let others: Vec<String> =
        others.chain(["enforcer.toml(5)".into(), "enforcer-policy(5)".into()]).collect();
    let mut pages = vec![("enforcer.8".to_owned(), main_page(command, &others, &date)?)];
    for sub in subcommands {
        let name = format!("enforcer-{}", sub.get_name());
        pages.push((format!("{name}.8"), tidy(&command_page(sub, &name, &date)?)));
    }
    pages.push(("enforcer.toml.5".into(), settings_page(&date)?));
    pages.push(("enforcer-policy.5".into(), policy_page(&date)?));
    Ok(pages)
}

/// clap_mangen breaks the line twice before possible values, which mandoc warns of.
fn tidy(page: &[u8]) -> Vec<u8> {
    String::from_utf8_lossy(page).replace(".br\n\n.br\n", ".sp\n").into_bytes()
}

fn main_page(command: Command, others: &[String], date: &str) -> Result<Vec<u8>> {
    let mut page = Vec::new();
    let man = Man::new(command).section("8").manual(MANUAL).date(date);
    man.render_title(&mut page)?;
    man.render_name_section(&mut page)?;
    man.render_synopsis_section(&mut page)?;
    man.render_description_section(&mut page)?;
    man.render_options_section(&mut page)?;
    man.render_subcommands_section(&mut page)?;
    man.render_extra_section(&mut page)?;
    let mut rest = Roff::new();
    for (title, rows) in [("FILES", &FILES[..]), ("SIGNALS", &SIGNALS[..])] {
        rest.control("SH", [title]);
        for (term, text) in rows {
            rest.control("TP", []).text([bold(*term)]).text([roman(*text)]);
        }
    }
    see_also(&mut rest, others);
    rest.to_writer(&mut page)?;
    Ok(page)
}

fn command_page(sub: Command, name: &str, date: &str) -> Result<Vec<u8>> {
    let mut page = Vec::new();
    let usage = name.replace('-', " ");
    // clap wants names that live as long as the program, which is a second.
    let sub = sub.name(&*name.to_owned().leak()).display_name(name.to_owned()).bin_name(usage);
    let man = Man::new(sub.version(env!("CARGO_PKG_VERSION"))).section("8").manual(MANUAL).date(date);
    man.render_title(&mut page)?;
    man.render_name_section(&mut page)?;
    man.render_synopsis_section(&mut page)?;
    man.render_description_section(&mut page)?;
    man.render_options_section(&mut page)?;
    let mut rest = Roff::new();
    rest.control("SH", ["EXIT STATUS"]).text([roman("As in enforcer(8).")]);
    see_also(&mut rest, &["enforcer(8)".into()]);
    rest.to_writer(&mut page)?;
    Ok(page)
}

fn settings_page(date: &str) -> Result<Vec<u8>> {
    let mut page = file_page("enforcer.toml", "settings of the enforcer daemon", date);
    page.control("SH", ["DESCRIPTION"]);
    let (head, _) = settings::SHIPPED.split_once("\n\n").context("enforcer.toml has no head")?;
    show(&mut page, &document::blocks(head));
    page.control("SH", ["SETTINGS"]);
    for setting in settings::settings()? {
        let default = setting.default.map_or_else(String::new, |default| format!(" = {default}"));
        page.control("TP", []).text([bold(setting.key), roman(default)]);
        let blocks = document::blocks(&setting.comment);
        for block in &blocks {
            match block {
                Block::Literal(text) if setting.is_table => {
                    page.control("nf", []).text([roman(text.clone())]).control("fi", []);
                }
                Block::Literal(text) | Block::Text(text) => {
                    page.text([roman(text.replace('\n', " "))]);
                }
            }
        }
    }
    page.control("SH", ["SINKS"]);
    show(&mut page, &document::blocks(settings::sinks()?));
    see_also(&mut page, &["enforcer(8)".into(), "enforcer-policy(5)".into()]);
    Ok(page.to_roff().into_bytes())
}

fn policy_page(date: &str) -> Result<Vec<u8>> {
    let mut page = file_page("enforcer-policy", "what enforcer denies, allows and audits", date);
    page.control("SH", ["SYNOPSIS"]).text([roman("/etc/enforcer/policies.d/*.toml")]);
    page.control("SH", ["DESCRIPTION"]);
    show(&mut page, &document::blocks(POLICY));
    page.control("SH", ["FILES"]);
    page.control("TP", [])
        .text([bold("/usr/share/doc/enforcer/examples")])
        .text([roman("Policies to begin with.")]);
    see_also(&mut page, &["enforcer(8)".into(), "enforcer-check(8)".into(), "enforcer.toml(5)".into()]);
    Ok(page.to_roff().into_bytes())
}

fn file_page(name: &str, what: &str, date: &str) -> Roff {
    let mut page = Roff::new();
    let source = format!("enforcer {}", env!("CARGO_PKG_VERSION"));
    page.control("TH", [name, "5", date, source.as_str(), FORMATS]);
    page.control("SH", ["NAME"]).text([roman(format!("{name} - {what}"))]);
    page
}

fn show(page: &mut Roff, blocks: &[Block]) {
    for (number, block) in blocks.iter().enumerate() {
        if number > 0 {
            page.control("PP", []);
        }
        match block {
            Block::Text(text) => {
                page.text([roman(text.clone())]);
            }
            Block::Literal(text) => {
                page.control("RS", ["4"]).control("nf", []);
                page.text([roman(text.clone())]);
                page.control("fi", []).control("RE", []);
            }
        }
    }
}

fn see_also(page: &mut Roff, pages: &[String]) {
    page.control("SH", ["SEE ALSO"]);
    let mut words: Vec<Inline> = Vec::new();
    for (number, name) in pages.iter().enumerate() {
        let (name, section) = name.split_once('(').unwrap_or((name, ""));
        words.push(roman(if number == 0 { "" } else { ", " }));
        words.push(bold(name));
        words.push(roman(format!("({section}")));
    }
    page.text(words);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn page(name: &str) -> String {
        let date = jiff::Timestamp::UNIX_EPOCH.to_zoned(jiff::tz::TimeZone::UTC);
        let page = pages(&date).unwrap().into_iter().find(|(page, _)| page == name).unwrap().1;
        String::from_utf8(page).unwrap().replace(r"\-", "-").replace(r"\&", "")
    }

    /// The parser lists the keys of a rule when it meets one that it does not know.
    #[test]
    fn the_policy_page_names_every_key_of_a_rule() {
        let bytes = b"[[rule]]\nname = \"x\"\naction = \"deny\"\nhosts = [\"a\"]\nzzzzzzzzzz = 1\n".to_vec();
        let source = enforcer::engine::policy::Source { path: "p".into(), bytes };
        let errors = enforcer::engine::policy::parse(&[source]).unwrap_err();
        let said = errors.iter().map(ToString::to_string).collect::<String>();
        let keys: Vec<&str> =
            said.split("a rule has ").nth(1).unwrap().split('`').skip(1).step_by(2).collect();
        assert!(keys.len() >= 5, "{said}");
        let page = page("enforcer-policy.5");
        for key in keys {
            assert!(
                page.lines().any(|line| line.trim_start().starts_with(key) && line.contains(" = ")),
                "{key}\n{page}"
            );
        }
    }

    #[test]
    fn the_settings_page_names_every_setting_and_default() {
        let page = page("enforcer.toml.5");
        for setting in settings::settings().unwrap() {
            assert!(page.contains(&format!(r"\fB{}\fR", setting.key)), "{}\n{page}", setting.key);
        }
        assert!(page.contains("= \"1h\"") && page.contains("type = \"syslog\""), "{page}");
    }

    #[test]
    fn every_command_has_a_page_that_the_main_one_names() {
        let main = page("enforcer.8");
        for sub in enforcer::cli::command().get_subcommands() {
            let name = format!("enforcer-{}", sub.get_name());
            assert!(page(&format!("{name}.8")).contains(&name));
            assert!(main.contains(&format!(r"\fB{name}\fR(8)")), "{name}\n{main}");
        }
        assert!(main.contains("Exit codes"), "{main}");
    }
}
