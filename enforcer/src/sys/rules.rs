//! The one reader of policy files, for everybody who acts on them or tells of them: from a directory to compiled rules,
//! all of them or none, and everything that is wrong at once.

use std::fmt;
use std::path::Path;

use serde::Serialize;

use super::last_good::LastGood;
use super::policy_dir::{self, Distrust, Listed, Problem, ProblemKind};
use super::random;
use crate::engine::compile::{Beside, Compiled};
use crate::engine::policy::{self, Diagnostic, Lists, Parsed, PolicySet, Source};
use crate::engine::tables::Budget;

/// What the files of one moment say.
#[derive(Debug)]
pub struct Reading {
    /// As far as they could be read.
    pub sources: Vec<Source>,
    /// The list files that they name, also those that cannot be used.
    pub listed: Vec<Listed>,
    pub rules: Result<Rules, Vec<Finding>>,
    /// Of what can be used nevertheless.
    pub warnings: Vec<Finding>,
}

/// What can be put in force.
#[derive(Debug)]
pub struct Rules {
    pub compiled: Compiled,
    pub set: PolicySet,
    pub lists: Lists,
}

/// Something wrong with the directory or with what stands in a file.
#[derive(Clone, Debug, Serialize)]
#[serde(untagged)]
pub enum Finding {
    Problem(Problem),
    /// A problem of files that others may write, for those who only look at them.
    Harmless(Problem),
    Diagnostic(Diagnostic),
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Problem(problem) => problem.fmt(f),
            Self::Harmless(problem) => f.write_str(&problem.as_finding("warning")),
            Self::Diagnostic(diagnostic) => diagnostic.fmt(f),
        }
    }
}

/// The findings as text.
pub fn lines(findings: &[Finding]) -> String {
    findings.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n")
}

/// Reads the directory, if there is one, and `more`, each in place of a file of the same path.
pub fn read(directory: Option<&Path>, more: &[Source], distrust: Distrust, beside: &Beside) -> Reading {
    let (mut sources, problems) = directory.map(policy_dir::scan).unwrap_or_default();
    sources.retain(|source| more.iter().all(|other| other.path != source.path));
    sources.extend_from_slice(more);
    let mut found = Found { distrust, errors: Vec::new(), warnings: Vec::new() };
    found.problems(problems);
    let mut listed = Vec::new();
    let rules = found.parse(&sources, beside).and_then(|parsed| {
        let (lists, all, problems) = policy_dir::read_lists(&parsed.set);
        // Also those that cannot be used, so that mending them is noticed.
        listed = all;
        found.problems(problems);
        found.compile(parsed, lists, beside)
    });
    found.reading(sources, listed, rules)
}

/// By the same rules, what was kept of files that are not asked any more.
pub fn of_copy(copy: LastGood, beside: &Beside) -> Reading {
    let LastGood { policies, lists, .. } = copy;
    let mut found = Found { distrust: Distrust::Refuse, errors: Vec::new(), warnings: Vec::new() };
    let rules = found.parse(&policies, beside).and_then(|parsed| {
        let lacking = parsed.set.lists().into_iter().find(|(path, _)| !lists.0.contains_key(path));
        if let Some((path, _)) = lacking {
            found.errors.push(Finding::Problem(Problem {
                path: path.as_ref().into(),
                kind: ProblemKind::Unusable,
                message: "the copy lacks this list".to_owned(),
                hint: "remove the copy: a new one is made of the next policy without errors".to_owned(),
            }));
            return None;
        }
        found.compile(parsed, lists, beside)
    });
    found.reading(policies, Vec::new(), rules)
}

struct Found {
    distrust: Distrust,
    errors: Vec<Finding>,
    warnings: Vec<Finding>,
}

impl Found {
    fn problems(&mut self, problems: Vec<Problem>) {
        for problem in problems {
            if self.distrust == Distrust::Ignore && problem.kind == ProblemKind::Untrusted {
                self.warnings.push(Finding::Harmless(problem));
            } else {
                self.errors.push(Finding::Problem(problem));
            }
        }
    }

    fn errors(&mut self, errors: Vec<Diagnostic>) {
        self.errors.extend(errors.into_iter().map(Finding::Diagnostic));
    }

    fn parse(&mut self, sources: &[Source], beside: &Beside) -> Option<Parsed> {
        policy::parse_with(sources, beside.spared.as_deref()).map_err(|errors| self.errors(errors)).ok()
    }

    fn compile(&mut self, parsed: Parsed, lists: Lists, beside: &Beside) -> Option<Rules> {
        // Who could choose names that fall on one place of the table would slow it down.
        let key = random::key().map_err(|error| self.errors.push(Finding::Problem(no_key(&error)))).ok()?;
        let compiled = Compiled::with_budget(&parsed.set, &lists, key, beside, Budget::default());
        let compiled = compiled.map_err(|errors| self.errors(errors)).ok()?;
        let warnings = parsed.warnings.iter().chain(compiled.warnings()).cloned();
        self.warnings.extend(warnings.map(Finding::Diagnostic));
        Some(Rules { compiled, set: parsed.set, lists })
    }

    /// All or nothing.
    fn reading(self, sources: Vec<Source>, listed: Vec<Listed>, rules: Option<Rules>) -> Reading {
        let Self { errors, warnings, .. } = self;
        let rules = rules.filter(|_| errors.is_empty()).ok_or(errors);
        Reading { sources, listed, rules, warnings }
    }
}

fn no_key(error: &std::io::Error) -> Problem {
    Problem {
        path: "/dev/urandom".into(),
        kind: ProblemKind::Unreadable,
        message: format!("no random numbers: {error}"),
        hint: "getrandom(2) says what lacks".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    const RULE: &str = "[[rule]]\nname = 'a'\naction = 'deny'\nhosts = ['a.example']\n";

    fn source(path: &Path, text: &str) -> Source {
        Source { path: path.display().to_string(), bytes: text.into() }
    }

    #[test]
    fn all_or_nothing_and_every_error_at_once() {
        let dir = tempfile::tempdir().unwrap();
        let (good, broken, link) =
            (dir.path().join("a.toml"), dir.path().join("b.toml"), dir.path().join("c.toml"));
        let read = |more: &[Source]| read(Some(dir.path()), more, Distrust::Refuse, &Beside::default());
        fs::write(&good, RULE).unwrap();
        assert_eq!(read(&[]).rules.unwrap().compiled.counts().rules, 1);
        fs::write(&broken, "[[rule]\n").unwrap();
        std::os::unix::fs::symlink("nowhere", &link).unwrap();
        let wrong = read(&[]);
        let errors = lines(&wrong.rules.unwrap_err());
        assert!(errors.contains("b.toml:1:") && errors.contains("c.toml: "), "{errors}");
        assert!(!errors.contains("a.toml"), "{errors}");
        fs::remove_file(&link).unwrap();
        // In place of the broken file, and beside the others.
        let more = [source(&broken, &RULE.replace("'a'", "'b'")), source(Path::new("--deny"), "")];
        let mended = read(&more);
        assert_eq!((mended.sources.len(), mended.rules.unwrap().compiled.counts().rules), (3, 2));
    }

    #[test]
    fn what_others_may_write_is_refused_or_told() {
        let dir = tempfile::tempdir().unwrap();
        let (file, list) = (dir.path().join("a.toml"), dir.path().join("names.txt"));
        fs::write(&list, "b.example\n").unwrap();
        let listed = format!("{RULE}lists = [{{ path = '{}', format = 'domains' }}]\n", list.display());
        fs::write(&file, listed).unwrap();
        for path in [&file, &list] {
            fs::set_permissions(path, PermissionsExt::from_mode(0o666)).unwrap();
        }
        let read = |distrust| read(Some(dir.path()), &[], distrust, &Beside::default());
        let refused = read(Distrust::Refuse);
        // What is wrong with the list is known to whoever waits for it to be mended.
        assert_eq!((refused.rules.unwrap_err().len(), refused.listed.len()), (2, 1));
        let told = read(Distrust::Ignore);
        assert_eq!((told.rules.unwrap().compiled.counts().names, told.warnings.len()), (2, 2));
        assert!(told.warnings[0].to_string().starts_with("warning: "), "{}", told.warnings[0]);
    }
}
