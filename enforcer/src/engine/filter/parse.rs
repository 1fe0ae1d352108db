//! From text to a filter: a lexer, and a parser that descends by precedence.

use globset::GlobBuilder;
use ipnetwork::IpNetwork;

use super::fields::{self, FIELDS, Field, Kind};
use super::{FilterError, Node, Order, Test};

const MAX_LENGTH: usize = 4096;
const MAX_DEPTH: usize = 64;
const MAX_GLOB: usize = 256;
const EXAMPLE: &str = "verdict == \"deny\" && dst_dns =~ \"*.example\"";

pub(super) fn parse(text: &str) -> Result<Node, FilterError> {
    let mut parser = Parser { text, tokens: Vec::new(), next: 0, depth: 0 };
    if text.len() > MAX_LENGTH {
        return Err(parser.error(1, "the filter is too long", format!("write at most {MAX_LENGTH} bytes")));
    }
    if text.trim().is_empty() {
        return Err(parser.error(1, "the filter is empty", format!("write for example {EXAMPLE}")));
    }
    parser.tokens = lex(text)?;
    let node = parser.either()?;
    match parser.peek() {
        Token::End => Ok(node),
        _ => Err(parser.unexpected()),
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Token {
    Word(String),
    Number(String),
    Text(String),
    Symbol(&'static str),
    End,
}

const SYMBOLS: &[&str] = &[
    "==", "!=", "=~", "!~", "<=", ">=", "&&", "||", "<", ">", "!", "(", ")", "[", "]", ",", "=", "&", "|",
    "~",
];

/// Each token with its column.
fn lex(text: &str) -> Result<Vec<(usize, Token)>, FilterError> {
    let characters: Vec<char> = text.chars().collect();
    let mut tokens = Vec::new();
    let mut at = 0;
    while let Some(&first) = characters.get(at) {
        let rest = &characters[at..];
        let run = |good: fn(char) -> bool| rest.iter().take_while(|&&c| good(c)).collect::<String>();
        let (token, length) = match first {
            _ if first.is_whitespace() => {
                at += 1;
                continue;
            }
            '"' | '\'' => quoted(rest).ok_or_else(|| unclosed(text, at + 1, first))?,
            _ if first.is_ascii_digit() => {
                let word = run(|c| c.is_ascii_alphanumeric() || c == '.' || c == ':' || c == '/');
                let length = word.len();
                (Token::Number(word), length)
            }
            _ if first.is_ascii_alphabetic() || first == '_' => {
                let word = run(|c| c.is_ascii_alphanumeric() || c == '_');
                let length = word.len();
                (Token::Word(word), length)
            }
            _ => {
                match SYMBOLS.iter().find(|symbol| symbol.chars().eq(rest.iter().copied().take(symbol.len())))
                {
                    Some(symbol) => (Token::Symbol(symbol), symbol.len()),
                    None => return Err(foreign(text, at + 1, first)),
                }
            }
        };
        tokens.push((at + 1, token));
        at += length;
    }
    tokens.push((characters.len() + 1, Token::End));
    Ok(tokens)
}

/// A text in quotes, and how long it is with them. `\` takes the next character as it is.
fn quoted(characters: &[char]) -> Option<(Token, usize)> {
    let quote = characters.first()?;
    let mut text = String::new();
    let mut at = 1;
    loop {
        match characters.get(at)? {
            c if c == quote => return Some((Token::Text(text), at + 1)),
            '\\' if characters.get(at + 1).is_some_and(|next| next == quote || *next == '\\') => {
                at += 1;
                text.push(characters[at]);
            }
            c => text.push(*c),
        }
        at += 1;
    }
}

fn unclosed(text: &str, column: usize, quote: char) -> FilterError {
    let hint = format!("write a {quote} at the end of the value");
    FilterError { column, message: "this quote is not closed".into(), hint, text: text.into() }
}

fn foreign(text: &str, column: usize, character: char) -> FilterError {
    let message = format!("{character:?} means nothing here");
    let hint = "values stand in quotes, fields and operators do not".into();
    FilterError { column, message, hint, text: text.into() }
}

struct Parser<'a> {
    text: &'a str,
    tokens: Vec<(usize, Token)>,
    next: usize,
    depth: usize,
}

impl Parser<'_> {
    fn either(&mut self) -> Result<Node, FilterError> {
        let mut node = self.both()?;
        while self.take("||") {
            node = Node::Or(Box::new(node), Box::new(self.both()?));
        }
        Ok(node)
    }

    fn both(&mut self) -> Result<Node, FilterError> {
        let mut node = self.one()?;
        while self.take("&&") {
            node = Node::And(Box::new(node), Box::new(self.one()?));
        }
        Ok(node)
    }

    fn one(&mut self) -> Result<Node, FilterError> {
        self.depth += 1;
        if self.depth > MAX_DEPTH {
            let hint = format!("nest at most {MAX_DEPTH} deep");
            return Err(self.error(self.column(), "the filter is nested too deep", hint));
        }
        let node = if self.take("!") {
            Node::Not(Box::new(self.one()?))
        } else if self.take("(") {
            let node = self.either()?;
            if !self.take(")") {
                return Err(self.lacking(")"));
            }
            node
        } else {
            self.comparison()?
        };
        self.depth -= 1;
        Ok(node)
    }

    fn comparison(&mut self) -> Result<Node, FilterError> {
        let column = self.column();
        let Token::Word(name) = self.peek().clone() else { return Err(self.unexpected()) };
        let Some(field) = fields::find(&name) else { return Err(self.no_field(column, &name)) };
        self.next += 1;
        let (column, operator) = (self.column(), self.operator());
        let Some(operator) = operator else {
            return match (field.kind, self.peek()) {
                (_, Token::Symbol("=")) => Err(self.unexpected()),
                (Kind::Bool, _) => Ok(Node::Is(field, Test::Bool(true))),
                _ => Err(self.error(
                    column,
                    format!("{name} has to be compared with something"),
                    format!("write for example {}", example(field)),
                )),
            };
        };
        self.next += 1;
        let node = |test| Node::Is(field, test);
        match operator {
            "==" => self.value(field).map(node),
            "!=" => self.value(field).map(node).map(negated),
            "=~" => self.glob(field, column, operator).map(node),
            "!~" => self.glob(field, column, operator).map(node).map(negated),
            "in" => self.list(field).map(node),
            order => self.order(field, column, order).map(node),
        }
    }

    fn operator(&self) -> Option<&'static str> {
        match self.peek() {
            Token::Symbol(symbol @ ("==" | "!=" | "=~" | "!~" | "<" | "<=" | ">" | ">=")) => Some(symbol),
            Token::Word(word) if word == "in" => Some("in"),
            _ => None,
        }
    }

    fn list(&mut self, field: &'static Field) -> Result<Test, FilterError> {
        if !self.take("[") {
            let hint = format!("write [{}, ..]", sample(field));
            return Err(self.error(self.column(), "after in stands a list", hint));
        }
        if self.peek() == &Token::Symbol("]") {
            let hint = format!("write [{}, ..]", sample(field));
            return Err(self.error(self.column(), "an empty list matches nothing", hint));
        }
        let mut tests = vec![self.value(field)?];
        while self.take(",") {
            tests.push(self.value(field)?);
        }
        if self.take("]") { Ok(Test::Any(tests)) } else { Err(self.lacking("]")) }
    }

    fn value(&mut self, field: &'static Field) -> Result<Test, FilterError> {
        let (column, token) = (self.column(), self.peek().clone());
        let wrong = |parser: &Self, what: &str| {
            let message = format!("{} is compared with {what}", field.name);
            Err(parser.error(column, message, format!("write for example {}", sample(field))))
        };
        let test = match (field.kind, &token) {
            (_, Token::End) => return Err(self.unexpected()),
            (Kind::Bool, Token::Word(word)) if word == "true" || word == "false" => {
                Test::Bool(word == "true")
            }
            (Kind::Bool, _) => return wrong(self, "true or false"),
            (Kind::Number(most), Token::Number(digits)) => {
                Test::Number(Order::Equal, self.number(column, digits, most)?)
            }
            (Kind::Number(_), _) => return wrong(self, "a number, without quotes"),
            (Kind::Ip, Token::Text(text)) => Test::Network(self.network(column, text)?),
            (Kind::Text, Token::Text(text)) => Test::Text(text.clone()),
            (Kind::Names, Token::Text(text)) => Test::Text(text.to_lowercase()),
            (Kind::Choice(choices), Token::Text(text)) => {
                if !choices.contains(&text.as_str()) {
                    let message = format!("{} cannot be {text:?}", field.name);
                    return Err(self.error(column, message, format!("write {}", one_of(choices))));
                }
                Test::Text(text.clone())
            }
            (_, Token::Word(word)) => {
                let message = format!("{word} has no quotes around it");
                return Err(self.error(column, message, format!("write \"{word}\"")));
            }
            _ => return wrong(self, "a text in quotes"),
        };
        self.next += 1;
        Ok(test)
    }

    fn glob(&mut self, field: &Field, at: usize, operator: &str) -> Result<Test, FilterError> {
        let lower = match field.kind {
            Kind::Text | Kind::Choice(_) => false,
            Kind::Names => true,
            Kind::Ip => {
                let message = format!("{operator} compares texts, and {} is an address", field.name);
                return Err(self.error(at, message, format!("write {} == \"10.0.0.0/8\"", field.name)));
            }
            Kind::Number(_) | Kind::Bool => {
                let message = format!("{operator} compares texts, and {} is none", field.name);
                return Err(self.error(at, message, format!("write for example {}", example(field))));
            }
        };
        let (column, Token::Text(text)) = (self.column(), self.peek().clone()) else {
            let hint = format!("write {} {operator} \"*.example\"", field.name);
            return Err(self.error(self.column(), "a glob stands in quotes", hint));
        };
        let pattern = if lower { text.to_lowercase() } else { text };
        let glob = if pattern.len() > MAX_GLOB {
            Err(format!("it is longer than {MAX_GLOB} bytes"))
        } else {
            GlobBuilder::new(&pattern).build().map_err(|error| error.kind().to_string())
        };
        match glob {
            Ok(glob) => {
                self.next += 1;
                Ok(Test::Glob(Box::new(glob.compile_matcher())))
            }
            Err(why) => {
                let hint =
                    "write * for anything, ? for one character, [a-z] or {a,b} for a choice".to_owned();
                Err(self.error(column, format!("this is no glob: {why}"), hint))
            }
        }
    }

    fn order(&mut self, field: &Field, at: usize, operator: &str) -> Result<Test, FilterError> {
        let Kind::Number(most) = field.kind else {
            let message = format!("{operator} compares numbers, and {} is none", field.name);
            let hint = match field.kind {
                Kind::Bool => field.name.to_owned(),
                Kind::Ip => format!("{} == \"10.0.0.0/8\"", field.name),
                _ => format!("== for the same text, or =~ for a glob: {} =~ \"*\"", field.name),
            };
            return Err(self.error(at, message, format!("write {hint}")));
        };
        let (column, Token::Number(digits)) = (self.column(), self.peek().clone()) else {
            let message = format!("{} is compared with a number, without quotes", field.name);
            return Err(self.error(self.column(), message, format!("write {} {operator} 443", field.name)));
        };
        let number = self.number(column, &digits, most)?;
        self.next += 1;
        let order = match operator {
            "<" => Order::Less,
            "<=" => Order::LessOrEqual,
            ">" => Order::Greater,
            _ => Order::GreaterOrEqual,
        };
        Ok(Test::Number(order, number))
    }

    fn number(&self, column: usize, digits: &str, most: i64) -> Result<i64, FilterError> {
        if !digits.bytes().all(|byte| byte.is_ascii_digit()) {
            let hint = format!("an address or a text stands in quotes: write \"{digits}\"");
            return Err(self.error(column, format!("{digits} is no number"), hint));
        }
        let number = digits.parse().ok().filter(|number| *number <= most);
        number.ok_or_else(|| {
            let hint = format!("the largest value is {most}");
            let hint = if digits.len() > 18 { format!("it is too large; {hint}") } else { hint };
            self.error(column, format!("{digits} cannot be"), hint)
        })
    }

    fn network(&self, column: usize, text: &str) -> Result<IpNetwork, FilterError> {
        let canonical = |network: IpNetwork| match network {
            IpNetwork::V6(v6) if v6.prefix() == 128 => IpNetwork::from(v6.ip().to_canonical()),
            other => other,
        };
        text.parse().map(canonical).map_err(|_| {
            let hint = "write an address, or a network such as 192.0.2.0/24, in quotes".to_owned();
            self.error(column, format!("{text:?} is no address"), hint)
        })
    }

    fn peek(&self) -> &Token {
        self.tokens.get(self.next).map_or(&Token::End, |(_, token)| token)
    }

    fn column(&self) -> usize {
        self.tokens.get(self.next).map_or(1, |(column, _)| *column)
    }

    fn take(&mut self, symbol: &str) -> bool {
        let taken = matches!(self.peek(), Token::Symbol(found) if *found == symbol);
        self.next += usize::from(taken);
        taken
    }

    fn lacking(&self, symbol: &str) -> FilterError {
        match self.peek() {
            Token::End => {
                let message = format!("the filter ends, and a {symbol} is lacking");
                self.error(self.column(), message, format!("write {symbol} here"))
            }
            _ => self.unexpected(),
        }
    }

    fn unexpected(&self) -> FilterError {
        let (message, hint) = match self.peek() {
            Token::End => ("the filter ends here".to_owned(), format!("go on as in {EXAMPLE}")),
            Token::Symbol("=") => {
                ("\"=\" is no operator".into(), "write == to compare, =~ for a glob".into())
            }
            Token::Symbol("&") => ("\"&\" is no operator".into(), "write &&".into()),
            Token::Symbol("|") => ("\"|\" is no operator".into(), "write ||".into()),
            Token::Symbol(")") => (") closes nothing".into(), "remove it, or write a ( before".into()),
            Token::Symbol(symbol) => {
                (format!("{symbol} cannot stand here"), format!("write as in {EXAMPLE}"))
            }
            Token::Word(word) if word == "and" => ("and is no operator".into(), "write &&".into()),
            Token::Word(word) if word == "or" => ("or is no operator".into(), "write ||".into()),
            Token::Word(word) => {
                (format!("{word} cannot stand here"), "write && or || between two tests".into())
            }
            Token::Number(text) | Token::Text(text) => {
                let message = format!("the value {text:?} has no field before it");
                (message, format!("write field, operator, value, as in {EXAMPLE}"))
            }
        };
        self.error(self.column(), message, hint)
    }

    fn no_field(&self, column: usize, name: &str) -> FilterError {
        let names = || FIELDS.iter().map(|field| field.name);
        let hint = match name {
            "not" => "write ! before the test, as in !(uid == 0)".to_owned(),
            _ => match names().find(|known| strsim::damerau_levenshtein(known, name) <= 2) {
                Some(near) => format!("did you mean {near}?"),
                None => format!("known are {}", names().collect::<Vec<_>>().join(", ")),
            },
        };
        self.error(column, format!("there is no field {name:?}"), hint)
    }

    fn error(&self, column: usize, message: impl Into<String>, hint: String) -> FilterError {
        FilterError { column, message: message.into(), hint, text: self.text.into() }
    }
}

fn negated(node: Node) -> Node {
    Node::Not(Box::new(node))
}

/// A value that the field may have, as it is written.
fn sample(field: &Field) -> String {
    match field.kind {
        Kind::Text => "\"text\"".into(),
        Kind::Names => "\"host.example\"".into(),
        Kind::Choice(choices) => format!("{:?}", choices[0]),
        Kind::Number(65_535) => "443".into(),
        Kind::Number(_) => "1000".into(),
        Kind::Bool => "false".into(),
        Kind::Ip => "\"192.0.2.0/24\"".into(),
    }
}

fn example(field: &Field) -> String {
    format!("{} == {}", field.name, sample(field))
}

fn one_of(choices: &[&str]) -> String {
    let quoted: Vec<_> = choices.iter().map(|choice| format!("{choice:?}")).collect();
    match quoted.split_last() {
        Some((last, rest)) if !rest.is_empty() => format!("{} or {last}", rest.join(", ")),
        _ => quoted.concat(),
    }
}
