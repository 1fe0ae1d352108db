//! The page itself. Every text in it goes through maud, which escapes; the sums hold printable ASCII only.

use std::cmp::Reverse;
use std::collections::BTreeMap;

use maud::{DOCTYPE, Markup, PreEscaped, html};

use crate::engine::summary::{BUCKETS, Counts, Summary, Talker};

const STYLE: &str = include_str!("style.css");
/// Nothing from outside, no scripts.
const CSP: &str = "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'";

const MAX_TALKERS: usize = 100;
const MAX_ROWS: usize = 15;

/// Where the sums come from.
pub(super) struct Origin {
    pub(super) host: String,
    pub(super) files: Vec<String>,
    pub(super) unreadable: u64,
}

pub(super) fn render(summary: &Summary, origin: &Origin) -> String {
    let title = format!("Connections of {}", visible(&origin.host));
    let page = html! {
        (DOCTYPE)
        html lang="en" {
            head {
                meta charset="utf-8";
                meta http-equiv="Content-Security-Policy" content=(CSP);
                meta name="viewport" content="width=device-width, initial-scale=1";
                meta name="referrer" content="no-referrer";
                title { (title) }
                style { (PreEscaped(STYLE)) }
            }
            body {
                header {
                    h1 { (title) }
                    p { (time(summary.since)) " to " (time(summary.until)) " UTC" }
                }
                main {
                    (tiles(summary))
                    (losses(summary, origin))
                    (timeline(summary))
                    (rules(summary))
                    (shared(summary))
                    (no_dns(summary))
                    (talkers(summary))
                }
                footer {
                    p {
                        "Written by enforcer " (env!("CARGO_PKG_VERSION")) " from " (summary.events) " events of "
                        (origin.files.iter().map(|file| visible(file)).collect::<Vec<_>>().join(", ")) "."
                    }
                }
            }
        }
    };
    page.into_string()
}

fn tiles(summary: &Summary) -> Markup {
    let tile = |class: &str, number: u64, what: &str| {
        html! { div class={ "tile " (class) } { b { (grouped(number)) } span { (what) } } }
    };
    html! {
        section.tiles {
            (tile("", summary.counts.all(), "connects"))
            (tile("deny", summary.counts.denied, "refused"))
            (tile("audit", summary.counts.audited, "would be refused"))
            (tile("", summary.talkers.len() as u64, "programs"))
            (tile("", summary.no_dns_connects, "without a DNS name"))
        }
    }
}

/// What the page cannot know.
fn losses(summary: &Summary, origin: &Origin) -> Markup {
    let Summary { lost_events, lost_answers, beyond, .. } = *summary;
    let lost = [
        (lost_events, "connects were lost before they were recorded"),
        (lost_answers, "DNS answers were lost: names may be missing"),
        (origin.unreadable, "lines of the files are no events"),
        (beyond, "connects are only in the sums: too many different programs, rules or addresses"),
    ];
    html! {
        @for (count, what) in lost.into_iter().filter(|(count, _)| *count > 0) {
            p.warning { (grouped(count)) " " (what) "." }
        }
    }
}

/// Bars over time: all, and in front of them what was refused.
fn timeline(summary: &Summary) -> Markup {
    const HEIGHT: u64 = 100;
    let most = summary.timeline.iter().map(Counts::all).max().unwrap_or(0).max(1);
    let height = |count: u64| {
        (count > 0).then(|| (u128::from(count) * u128::from(HEIGHT) / u128::from(most)).max(1) as u64)
    };
    let bar = |n: usize, count: u64, class: &str| {
        html! {
            @if let Some(height) = height(count) {
                rect class=(class) x=(n * 10 + 1) y=(HEIGHT - height.min(HEIGHT)) width="8" height=(height.min(HEIGHT)) {}
            }
        }
    };
    html! {
        section {
            h2 { "Over time" }
            figure {
                svg viewBox={ "0 0 " (BUCKETS * 10) " " (HEIGHT) } preserveAspectRatio="none" role="img"
                    aria-label="Connects over time" {
                    @for (n, counts) in summary.timeline.iter().enumerate() {
                        (bar(n, counts.all(), "all"))
                        (bar(n, counts.denied.saturating_add(counts.audited), "deny"))
                    }
                }
                figcaption {
                    span { (clock(summary.since)) }
                    span { "at most " (grouped(most)) " a bar, refused ones in red" }
                    span { (clock(summary.until)) }
                }
            }
        }
    }
}

fn rules(summary: &Summary) -> Markup {
    let mut rules: Vec<_> =
        summary.rules.iter().filter(|(_, rule)| rule.counts.denied + rule.counts.audited > 0).collect();
    rules.sort_by_key(|(name, rule)| (Reverse(rule.counts.denied + rule.counts.audited), *name));
    let most = rules.iter().map(|(_, rule)| rule.counts.denied + rule.counts.audited).max().unwrap_or(1);
    html! {
        section {
            h2 { "Refused, by rule" }
            @if rules.is_empty() { p.none { "Nothing was refused." } }
            @for (name, rule) in rules {
                article class=[(rule.counts.denied == 0).then_some("audited")] {
                    h3 { (name) }
                    (meter(rule.counts.denied + rule.counts.audited, most))
                    p.counts { (counts(&rule.counts)) }
                    dl {
                        dt { "to" } dd { (list(&rule.destinations)) }
                        dt { "by" } dd { (list(&rule.programs)) }
                    }
                }
            }
        }
    }
}

fn shared(summary: &Summary) -> Markup {
    let shared = summary.shared();
    html! {
        section {
            h2 { "Shared addresses that were refused" }
            p.about { "More than one name leads to these: somebody who wanted another of them was refused, too." }
            @if shared.is_empty() { p.none { "None is known." } }
            @if !shared.is_empty() {
                (table(&["Address", "Names", "Not refused by any rule", "Rule", "Refused"], shared.iter().take(100).map(|(ip, address)| vec![
                    ip.to_string(),
                    address.asked.iter().cloned().collect::<Vec<_>>().join(", "),
                    address.also_serves.iter().cloned().collect::<Vec<_>>().join(", "),
                    address.rules.iter().cloned().collect::<Vec<_>>().join(", "),
                    grouped(address.counts.denied),
                ])))
                (more(shared.len(), 100))
            }
        }
    }
}

fn no_dns(summary: &Summary) -> Markup {
    let mut rows: Vec<_> = summary.no_dns.iter().collect();
    rows.sort_by_key(|(key, counts)| (Reverse(counts.all()), *key));
    html! {
        section {
            h2 { "Addresses that no name led to" }
            p.about { "No DNS answer that enforcer saw named them: here, policies by name are blind." }
            @if rows.is_empty() { p.none { "None." } }
            @if !rows.is_empty() {
                (table(&["Program", "Address", "Connects"], rows.iter().take(50).map(|((program, address), counts)| vec![
                    program.clone(), address.clone(), grouped(counts.all()),
                ])))
                (more(rows.len(), 50))
            }
        }
    }
}

fn talkers(summary: &Summary) -> Markup {
    let mut talkers: Vec<_> = summary.talkers.iter().collect();
    talkers.sort_by_key(|(key, talker)| (Reverse(talker.counts.all()), *key));
    html! {
        section {
            h2 { "Who talked to whom" }
            @if talkers.is_empty() { p.none { "Nobody." } }
            @for ((program, user), talker) in talkers.iter().take(MAX_TALKERS) {
                article {
                    h3 { (program) " " small { "as " (user) @for unit in &talker.units { ", " (unit) } } }
                    p.counts { (counts(&talker.counts)) }
                    (destinations(talker))
                }
            }
            (more(talkers.len(), MAX_TALKERS))
        }
    }
}

fn destinations(talker: &Talker) -> Markup {
    let mut rows: Vec<_> = talker.destinations.iter().collect();
    // What was refused is what one looks for.
    rows.sort_by_key(|(name, counts)| {
        (Reverse(counts.denied + counts.audited), Reverse(counts.all()), *name)
    });
    let most = rows.iter().map(|(_, counts)| counts.all()).max().unwrap_or(1);
    html! {
        table.destinations {
            @for (name, counts) in rows.iter().take(MAX_ROWS) {
                tr class=[(counts.denied + counts.audited > 0).then_some("deny")] {
                    td { (name) }
                    td.bar { (meter(counts.all(), most)) }
                    td.number { (self::counts(counts)) }
                }
            }
        }
        (more(rows.len(), MAX_ROWS))
        @if talker.elsewhere > 0 { p.more { "and " (grouped(talker.elsewhere)) " connects elsewhere" } }
    }
}

fn table(titles: &[&str], rows: impl Iterator<Item = Vec<String>>) -> Markup {
    html! {
        table {
            thead { tr { @for title in titles { th { (title) } } } }
            tbody {
                @for row in rows {
                    // On a phone each cell is a line of its own, with its title before it.
                    tr { @for (cell, title) in row.iter().zip(titles) { td data-title=(title) { (cell) } } }
                }
            }
        }
    }
}

/// A bar; SVG, as its length needs no style.
fn meter(value: u64, most: u64) -> Markup {
    let length = u128::from(value) * 100 / u128::from(most.max(1));
    html! {
        svg.meter viewBox="0 0 100 4" preserveAspectRatio="none" aria-hidden="true" {
            rect x="0" y="0" width=(length.clamp(1, 100)) height="4" {}
        }
    }
}

fn counts(counts: &Counts) -> Markup {
    let parts = [
        (counts.denied, "deny", "refused"),
        (counts.audited, "audit", "would be refused"),
        (counts.allowed, "allow", "allowed"),
    ];
    html! {
        @for (count, class, what) in parts.into_iter().filter(|(count, ..)| *count > 0) {
            span class=(class) { (grouped(count)) " " (what) } " "
        }
    }
}

fn list(entries: &BTreeMap<String, u64>) -> Markup {
    let mut sorted: Vec<_> = entries.iter().collect();
    sorted.sort_by_key(|(name, count)| (Reverse(**count), *name));
    html! {
        ul {
            @for (name, count) in sorted.iter().take(MAX_ROWS) { li { (name) " " small { (grouped(**count)) } } }
        }
        (more(sorted.len(), MAX_ROWS))
    }
}

fn more(all: usize, shown: usize) -> Markup {
    html! { @if all > shown { p.more { "and " (all - shown) " more" } } }
}

/// 12 345 678, with spaces that do not break.
fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut out = String::new();
    for (n, digit) in digits.chars().enumerate() {
        if n > 0 && (digits.len() - n).is_multiple_of(3) {
            out.push('\u{202f}');
        }
        out.push(digit);
    }
    out
}

fn visible(text: &str) -> String {
    crate::engine::format::text::escape(text)
}

fn time(ns: i64) -> String {
    let time = jiff::Timestamp::from_nanosecond(i128::from(ns)).unwrap_or_default();
    time.strftime("%Y-%m-%d %H:%M").to_string()
}

fn clock(ns: i64) -> String {
    let time = jiff::Timestamp::from_nanosecond(i128::from(ns)).unwrap_or_default();
    time.strftime("%H:%M").to_string()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::engine::format::samples;
    use crate::engine::record::{Connect, Event, VerdictName};

    fn origin() -> Origin {
        Origin { host: "<script>alert(1)</script>".into(), files: vec!["<b>.json".into()], unreadable: 3 }
    }

    fn page(events: &[Event]) -> String {
        let mut summary = Summary::new(1_795_400_000_000_000_000, 1_795_500_000_000_000_000);
        events.iter().for_each(|event| assert!(summary.add(event)));
        render(&summary, &origin())
    }

    #[test]
    fn the_page_says_what_happened() {
        let denied = samples::connect();
        let allowed =
            Connect { verdict: VerdictName::Allow, rule: None, count: 12_345, ..samples::connect() };
        let page = page(&[Event::TcpConnect(denied), Event::TcpConnect(allowed), Event::Gap(samples::gap())]);
        for wanted in [
            "tracker.example:443",
            "no-trackers",
            "/usr/bin/curl",
            "12\u{202f}346",
            "7 connects were lost",
            "3 lines",
        ] {
            assert!(page.contains(wanted), "{wanted}\n not in\n{page}");
        }
    }

    #[test]
    fn it_holds_no_scripts_and_asks_for_nothing() {
        let page = page(&[Event::TcpConnect(samples::connect())]);
        assert!(page.contains("default-src 'none'"));
        for forbidden in ["<script", "src=", "href=", "url(", "@import", " style=", " on"] {
            let found =
                page.find(forbidden).map(|at| &page[at.saturating_sub(20)..(at + 40).min(page.len())]);
            assert!(found.is_none() || forbidden == " on", "{forbidden}: {found:?}");
        }
    }

    proptest! {
        /// Tags in the page are those of the template, whatever the events hold.
        #[test]
        fn nothing_from_an_event_is_markup(event in samples::hostile()) {
            let mut summary = Summary::new(i64::MIN, i64::MAX);
            summary.add(&event);
            let page = render(&summary, &origin());
            let tags: Vec<_> = page.split('<').skip(1).map(|tag| {
                tag.split(|c: char| !(c.is_ascii_alphanumeric() || c == '!' || c == '/')).next().unwrap()
            }).collect();
            const KNOWN: &[&str] = &["!DOCTYPE", "html", "head", "meta", "title", "style", "body", "header", "h1", "h2", "h3",
                "p", "main", "section", "div", "b", "span", "figure", "svg", "rect", "figcaption", "article", "dl", "dt", "dd",
                "ul", "li", "small", "table", "thead", "tbody", "tr", "th", "td", "footer"];
            for tag in tags {
                prop_assert!(KNOWN.contains(&tag.trim_start_matches('/')), "<{tag}");
            }
        }
    }
}
