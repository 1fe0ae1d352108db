//! The shipped files teach their formats in comments: paragraphs, and examples of what to write. This reads them,
//! so that the man pages say the same.

/// A part of such comments.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Block {
    Text(String),
    /// Lines to be shown as they are.
    Literal(String),
}

/// The blocks of consecutive comment lines. A paragraph is literal when it is indented or is TOML.
pub(crate) fn blocks(text: &str) -> Vec<Block> {
    let lines = text.lines().filter_map(|line| line.strip_prefix('#'));
    let lines: Vec<&str> = lines.map(|line| line.strip_prefix(' ').unwrap_or(line)).collect();
    lines.split(|line| line.trim().is_empty()).filter(|lines| !lines.is_empty()).map(block).collect()
}

fn block(lines: &[&str]) -> Block {
    if lines.iter().any(|line| is_literal(line)) {
        Block::Literal(lines.join("\n"))
    } else {
        Block::Text(lines.join(" "))
    }
}

fn is_literal(line: &str) -> bool {
    let key = |(key, _): (&str, &str)| key.trim().chars().all(|c| c.is_ascii_lowercase() || c == '_');
    line.starts_with(' ') || line.starts_with('[') || line.split_once(" = ").is_some_and(key)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paragraphs_and_toml_are_told_apart() {
        let text = "# One\n# two.\n#\n# [[rule]]\n# name = \"x\"   # why\n\n#   a   b\n# Write a = b here.\nkey = 1\n";
        let want = [
            Block::Text("One two.".into()),
            Block::Literal("[[rule]]\nname = \"x\"   # why\n  a   b\nWrite a = b here.".into()),
        ];
        // A line that is no comment ends no paragraph; an empty comment does.
        assert_eq!(blocks(text), want);
        assert_eq!(
            blocks("# A rule has `hosts` = names.\n"),
            [Block::Text("A rule has `hosts` = names.".into())]
        );
    }
}
