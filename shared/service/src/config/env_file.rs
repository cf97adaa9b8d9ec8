//! A `.env` file, as dotenv libraries read it: `NAME=value`, with `export` before it or not, comments, and values in single
//! quotes (as they stand), in double quotes, or in none (where `$NAME`, `${NAME}` and backslashes mean something).
//!
//! A fault names the line and nothing of what stands in it.
//!
//! The crate dotenvy can't be used: it takes a variable that is not set for an empty text, ends its name at `_`, and does not
//! say which line is at fault.

use std::cell::Cell;
use std::collections::HashSet;

/// What a file says.
#[derive(Debug)]
pub(super) struct Parsed {
    /// Names and values, in the file's order.
    pub entries: Vec<(String, String)>,
    /// The names whose values use the environment, through other lines as well.
    pub borrowers: HashSet<String>,
}

/// A line that can't be read.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Fault {
    /// It is not of the form.
    Form(usize),
    /// It uses a variable that is not set.
    Unset(usize),
}

/// Reads it. `set` says what the environment has, which goes before what stands in earlier lines.
///
/// # Errors
///
/// With every line that can't be read.
pub(super) fn parse(text: &str, set: impl Fn(&str) -> Option<String>) -> Result<Parsed, Vec<Fault>> {
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    let (mut found, mut faults) = (Vec::<(String, String)>::new(), Vec::new());
    let mut borrowers = HashSet::new();
    let mut reader = Reader { rest: text, line: 1 };
    while !reader.rest.is_empty() {
        let borrows = Cell::new(false);
        let known = |name: &str| {
            let (value, earlier) = (set(name), found.iter().rev().find(|(earlier, _)| earlier == name));
            borrows.set(borrows.get() || value.is_some() || borrowers.contains(name));
            value.or_else(|| earlier.map(|(_, value)| value.clone()))
        };
        match reader.entry(known) {
            Ok(entry) => {
                borrowers.extend(entry.iter().filter(|_| borrows.get()).map(|(name, _)| name.clone()));
                found.extend(entry);
            }
            Err(fault) => {
                faults.push(fault);
                reader.skip_line();
            }
        }
    }
    if faults.is_empty() { Ok(Parsed { entries: found, borrowers }) } else { Err(faults) }
}

struct Reader<'a> {
    rest: &'a str,
    /// Counted from 1.
    line: usize,
}

impl Reader<'_> {
    fn next(&mut self) -> Option<char> {
        let next = self.rest.chars().next()?;
        self.rest = &self.rest[next.len_utf8()..];
        self.line += usize::from(next == '\n');
        Some(next)
    }

    fn takes(&mut self, expected: char) -> bool {
        let is_there = self.rest.starts_with(expected);
        if is_there {
            self.next();
        }
        is_there
    }

    fn take_while(&mut self, fits: impl Fn(char) -> bool) -> String {
        let mut taken = String::new();
        while let Some(next) = self.rest.chars().next().filter(|next| fits(*next)) {
            taken.push(next);
            self.next();
        }
        taken
    }

    fn skip_blanks(&mut self) {
        self.take_while(|c| c != '\n' && c.is_whitespace());
    }

    fn skip_line(&mut self) {
        self.take_while(|c| c != '\n');
        self.next();
    }

    fn name(&mut self) -> Option<String> {
        let begins = |c: char| c.is_ascii_alphabetic() || c == '_';
        self.rest.starts_with(begins).then(|| self.take_while(|c| begins(c) || c.is_ascii_digit()))
    }

    /// The next line; nothing if it is empty or a comment.
    fn entry(&mut self, known: impl Fn(&str) -> Option<String>) -> Result<Option<(String, String)>, Fault> {
        let line = self.line;
        self.skip_blanks();
        if self.rest.is_empty() || self.takes('\n') {
            return Ok(None);
        }
        if self.rest.starts_with('#') {
            self.skip_line();
            return Ok(None);
        }
        let mut name = self.setting().ok_or(Fault::Form(line))?;
        self.skip_blanks();
        if name == "export" && !self.rest.starts_with('=') {
            name = self.setting().ok_or(Fault::Form(line))?;
            self.skip_blanks();
        }
        if !self.takes('=') {
            return Err(Fault::Form(line));
        }
        self.skip_blanks();
        let value = self.value(line, known)?;
        Ok(Some((name, value)))
    }

    /// The name of a setting, which may have dots.
    fn setting(&mut self) -> Option<String> {
        let mut name = self.name()?;
        name.push_str(&self.take_while(|c| c.is_ascii_alphanumeric() || c == '_' || c == '.'));
        Some(name)
    }

    /// Up to and with the end of the line.
    fn value(&mut self, line: usize, known: impl Fn(&str) -> Option<String>) -> Result<String, Fault> {
        if self.rest.starts_with('#') {
            self.skip_line();
            return Ok(String::new());
        }
        let (mut value, mut quoted) = (String::new(), false);
        loop {
            let at = self.line;
            match self.next() {
                None if quoted => return Err(Fault::Form(line)),
                None => return Ok(value),
                Some('"') => quoted = !quoted,
                Some('\'') if !quoted => loop {
                    match self.next() {
                        Some('\'') => break,
                        Some(c) => value.push(c),
                        None => return Err(Fault::Form(line)),
                    }
                },
                Some('\\') => match self.next() {
                    Some('n') => value.push('\n'),
                    Some(c @ ('\\' | '\'' | '"' | '$' | ' ' | '`' | '#')) => value.push(c),
                    _ => return Err(Fault::Form(at)),
                },
                Some('$') => match self.variable(at)? {
                    Some(name) => value.push_str(&known(&name).ok_or(Fault::Unset(at))?),
                    None => value.push('$'),
                },
                Some('\n') if !quoted => return Ok(value),
                Some(c) if !quoted && c.is_whitespace() => {
                    self.skip_blanks();
                    if !self.rest.is_empty() && !self.rest.starts_with(['#', '\n']) {
                        return Err(Fault::Form(at));
                    }
                    self.skip_line();
                    return Ok(value);
                }
                Some(c) => value.push(c),
            }
        }
    }

    /// Behind a `$`; nothing if no name follows.
    fn variable(&mut self, line: usize) -> Result<Option<String>, Fault> {
        if !self.takes('{') {
            return Ok(self.name());
        }
        let name = self.name().ok_or(Fault::Form(line))?;
        if self.takes('}') { Ok(Some(name)) } else { Err(Fault::Form(line)) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<Vec<(String, String)>, Vec<Fault>> {
        parse(text, |name| (name == "HOME_OF").then(|| "/home".to_owned())).map(|parsed| parsed.entries)
    }

    fn value(text: &str) -> String {
        let found = read(&format!("A=a\n{text}\n")).unwrap_or_else(|faults| panic!("{text}: {faults:?}"));
        assert_eq!(found.len(), 2, "{text}");
        found[1].1.clone()
    }

    #[test]
    fn a_dollar_is_literal_in_single_quotes_and_where_no_name_follows() {
        for (text, expected) in [
            ("B='pa$word'", "pa$word"),
            ("B='${A}$$'", "${A}$$"),
            (r"B='a\n\$'", r"a\n\$"),
            ("B=pa$", "pa$"),
            ("B=pa$$", "pa$$"),
            ("B=pa$5", "pa$5"),
            (r"B=pa\$A", "pa$A"),
            (r#"B="pa\$A""#, "pa$A"),
            ("B=$A", "a"),
            ("B=${A}b", "ab"),
            (r#"B="$A b""#, "a b"),
            ("B='x'$A\"y\"", "xay"),
            ("B=$HOME_OF/x", "/home/x"),
        ] {
            assert_eq!(value(text), expected, "{text}");
        }
    }

    #[test]
    fn a_variable_that_is_not_set_is_a_fault_that_names_the_line() {
        for text in ["B=pa$word", "B=${word}", "B=\"pa$word\"", "B=$A_", "B=$B"] {
            assert_eq!(read(&format!("A=a\n\n# c\n{text}\nC=c\n")), Err(vec![Fault::Unset(4)]), "{text}");
        }
        assert_eq!(read("A=$x\nB=$y\nC=c"), Err(vec![Fault::Unset(1), Fault::Unset(2)]));
        assert_eq!(read("B=\"1\n2 $x\""), Err(vec![Fault::Unset(2)]));
    }

    #[test]
    fn lines_are_read_as_dotenv_libraries_do() {
        for (text, expected) in [
            ("B=", ""),
            ("B= # nothing", ""),
            ("B=b # comment", "b"),
            ("B=b#b", "b#b"),
            ("B = b", "b"),
            ("  export B=b  ", "b"),
            ("export=b", "b"),
            ("B=\"b # b\" # comment", "b # b"),
            ("B='b \"b\"'", "b \"b\""),
            (r#"B="it's""#, "it's"),
            ("B=\"1\\n2\"", "1\n2"),
            ("B='1\n2'", "1\n2"),
            ("B=postgres://app:p%23@localhost/x?a=b&c=d", "postgres://app:p%23@localhost/x?a=b&c=d"),
            ("B=b\r", "b"),
            ("a.B=b", "b"),
        ] {
            assert_eq!(value(text), expected, "{text:?}");
        }
        assert_eq!(read("\u{feff}A=a").unwrap(), [("A".to_owned(), "a".to_owned())]);
        for text in ["hunter2", "=b", "1A=b", "A b", "A=b c", "A='b", "A=\"b", r"A=\x", "A=${B", "A=${}"] {
            assert_eq!(read(text), Err(vec![Fault::Form(1)]), "{text}");
        }
    }
}
