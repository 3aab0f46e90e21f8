//! Splits GraphQL text into tokens (spec of October 2021, section 2.1, and `\u{…}` of September
//! 2025).

use async_graphql::Pos;

/// A token, borrowed from the text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Token<'a> {
    /// The end of the text.
    End,
    /// One of `! $ & ( ) : = @ [ ] { | }`.
    Mark(u8),
    /// `...`
    Spread,
    /// A name, keywords included.
    Name(&'a str),
    /// A number.
    Number(&'a str),
    /// A string.
    Text(Text<'a>),
}

/// A string as it was written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Text<'a> {
    /// `"…"`
    Line(&'a str),
    /// `"""…"""`
    Block(&'a str),
}

/// The text and the position in it.
pub(super) struct Lexer<'a> {
    text: &'a str,
    at: usize,
    line: usize,
    /// The start of the line, plus the number of continuation bytes in it: columns count
    /// characters, `at` counts bytes.
    line_start: usize,
}

impl<'a> Lexer<'a> {
    pub(super) fn new(text: &'a str) -> Self {
        Self { text, at: 0, line: 1, line_start: 0 }
    }

    /// The next token and its position.
    ///
    /// # Errors
    /// The position where no token could be read.
    pub(super) fn next(&mut self) -> Result<(Token<'a>, Pos), Pos> {
        self.skip_ignored();
        let pos = Pos { line: self.line, column: self.at + 1 - self.line_start };
        let start = self.at;
        let token = match self.peek(0) {
            None => Token::End,
            Some(
                mark @ (b'!' | b'$' | b'&' | b'(' | b')' | b':' | b'=' | b'@' | b'[' | b']' | b'{' | b'|'
                | b'}'),
            ) => {
                self.at += 1;
                Token::Mark(mark)
            }
            Some(b'.') if self.text.as_bytes()[self.at..].starts_with(b"...") => {
                self.at += 3;
                Token::Spread
            }
            Some(first) if is_name_start(first) => {
                self.skip_while(is_name);
                Token::Name(&self.text[start..self.at])
            }
            Some(b'-' | b'0'..=b'9') => Token::Number(self.number().ok_or(pos)?),
            Some(b'"') => Token::Text(self.string().ok_or(pos)?),
            Some(_) => return Err(pos),
        };
        Ok((token, pos))
    }

    fn peek(&self, ahead: usize) -> Option<u8> {
        self.text.as_bytes().get(self.at + ahead).copied()
    }

    fn skip_while(&mut self, wanted: fn(u8) -> bool) -> usize {
        let rest = &self.text.as_bytes()[self.at..];
        let length = rest.iter().position(|byte| !wanted(*byte)).unwrap_or(rest.len());
        self.at += length;
        length
    }

    fn skip_ignored(&mut self) {
        while let Some(byte) = self.peek(0) {
            match byte {
                b' ' | b'\t' | b',' => self.at += 1,
                b'\n' | b'\r' => self.line_break(),
                b'#' => {
                    while let Some(byte) = self.peek(0).filter(|byte| !matches!(byte, b'\n' | b'\r')) {
                        self.step(byte);
                    }
                }
                // The byte order mark, which is allowed anywhere.
                0xEF if self.text.as_bytes()[self.at..].starts_with(b"\xEF\xBB\xBF") => {
                    self.at += 3;
                    self.line_start += 2;
                }
                _ => return,
            }
        }
    }

    fn line_break(&mut self) {
        self.at += if self.peek(0) == Some(b'\r') && self.peek(1) == Some(b'\n') { 2 } else { 1 };
        self.line += 1;
        self.line_start = self.at;
    }

    fn step(&mut self, byte: u8) {
        self.at += 1;
        self.line_start += usize::from(byte & 0xC0 == 0x80);
    }

    fn number(&mut self) -> Option<&'a str> {
        let start = self.at;
        self.at += usize::from(self.peek(0) == Some(b'-'));
        let first = self.peek(0);
        let digits = self.skip_while(|byte| byte.is_ascii_digit());
        if digits == 0 || (digits > 1 && first == Some(b'0')) {
            return None;
        }
        if self.peek(0) == Some(b'.') {
            self.at += 1;
            if self.skip_while(|byte| byte.is_ascii_digit()) == 0 {
                return None;
            }
        }
        if matches!(self.peek(0), Some(b'e' | b'E')) {
            self.at += 1;
            self.at += usize::from(matches!(self.peek(0), Some(b'+' | b'-')));
            if self.skip_while(|byte| byte.is_ascii_digit()) == 0 {
                return None;
            }
        }
        match self.peek(0) {
            Some(next) if is_name_start(next) || next == b'.' => None,
            _ => Some(&self.text[start..self.at]),
        }
    }

    fn string(&mut self) -> Option<Text<'a>> {
        if self.text.as_bytes()[self.at..].starts_with(b"\"\"\"") {
            return self.block_string();
        }
        self.at += 1;
        let start = self.at;
        loop {
            match self.peek(0)? {
                b'"' => {
                    let text = &self.text[start..self.at];
                    self.at += 1;
                    return Some(Text::Line(text));
                }
                b'\n' | b'\r' => return None,
                // The escaped character does not end the string; `value` checks the escape.
                b'\\' => {
                    self.at += 1;
                    let escaped = self.peek(0).filter(|byte| !matches!(byte, b'\n' | b'\r'))?;
                    self.step(escaped);
                }
                byte => self.step(byte),
            }
        }
    }

    fn block_string(&mut self) -> Option<Text<'a>> {
        self.at += 3;
        let start = self.at;
        loop {
            let rest = &self.text.as_bytes()[self.at..];
            match *rest.first()? {
                b'"' if rest.starts_with(b"\"\"\"") => {
                    let text = &self.text[start..self.at];
                    self.at += 3;
                    return Some(Text::Block(text));
                }
                b'\\' if rest.starts_with(b"\\\"\"\"") => self.at += 4,
                b'\n' | b'\r' => self.line_break(),
                byte => self.step(byte),
            }
        }
    }
}

fn is_name_start(byte: u8) -> bool {
    byte.is_ascii_alphabetic() || byte == b'_'
}

fn is_name(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || byte == b'_'
}

impl Text<'_> {
    /// The value of the string; `None` if an escape is invalid (a lone surrogate included).
    pub(super) fn value(self) -> Option<String> {
        match self {
            Self::Line(text) if !text.contains('\\') => Some(text.to_owned()),
            Self::Line(text) => unescaped(text),
            Self::Block(text) => Some(block_value(text)),
        }
    }
}

fn unescaped(text: &str) -> Option<String> {
    let mut value = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(index) = rest.find('\\') {
        value.push_str(&rest[..index]);
        let escape = rest[index + 1..].chars().next()?;
        rest = &rest[index + 1 + escape.len_utf8()..];
        value.push(match escape {
            '"' | '\\' | '/' => escape,
            'b' => '\u{8}',
            'f' => '\u{c}',
            'n' => '\n',
            'r' => '\r',
            't' => '\t',
            'u' if rest.starts_with('{') => {
                let (digits, after) = rest[1..].split_once('}')?;
                rest = after;
                char::from_u32(hexadecimal(digits)?)?
            }
            'u' => {
                let first = code_unit(&mut rest)?;
                match first {
                    0xD800..=0xDBFF => {
                        rest = rest.strip_prefix("\\u")?;
                        let second = code_unit(&mut rest)?;
                        char::decode_utf16([first, second]).next()?.ok()?
                    }
                    unit => char::from_u32(u32::from(unit))?,
                }
            }
            _ => return None,
        });
    }
    value.push_str(rest);
    Some(value)
}

fn code_unit(rest: &mut &str) -> Option<u16> {
    let (digits, after) = rest.split_at_checked(4)?;
    *rest = after;
    hexadecimal(digits)?.try_into().ok()
}

/// A number of hexadecimal digits alone: `from_str_radix` also accepts a sign.
fn hexadecimal(digits: &str) -> Option<u32> {
    let are_digits = digits.bytes().all(|byte| byte.is_ascii_hexdigit());
    if are_digits { u32::from_str_radix(digits, 16).ok() } else { None }
}

/// The spec's `BlockStringValue`: without the indentation that all lines but the first share, and
/// without blank lines at both ends.
fn block_value(text: &str) -> String {
    let text = text.replace("\r\n", "\n").replace('\r', "\n").replace("\\\"\"\"", "\"\"\"");
    let indent = |line: &str| line.bytes().take_while(|byte| matches!(byte, b' ' | b'\t')).count();
    let is_blank = |line: &&str| indent(line) == line.len();
    let common = text.split('\n').skip(1).filter(|line| !is_blank(line)).map(indent).min().unwrap_or(0);
    let lines: Vec<&str> = text
        .split('\n')
        .enumerate()
        .map(|(number, line)| if number == 0 { line } else { line.get(common..).unwrap_or_default() })
        .collect();
    let first = lines.iter().position(|line| !is_blank(line)).unwrap_or(lines.len());
    let last = lines.iter().rposition(|line| !is_blank(line)).map_or(first, |last| last + 1);
    lines[first..last].join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_block_string_loses_its_indentation_and_its_blank_ends() {
        assert_eq!(block_value("\n    Hello,\n      World!\n\n    Yours.\n  "), "Hello,\n  World!\n\nYours.");
        assert_eq!(block_value("one\r\n  two"), "one\ntwo");
        assert_eq!(block_value("  \n\t\n"), "");
        assert_eq!(block_value(r#"say \"""yes\""""#), r#"say """yes""""#);
    }

    #[test]
    fn a_number_has_one_spelling() {
        let number = |text| Lexer::new(text).number().map(str::len);
        for good in ["0", "-0", "7", "10", "1.5", "1e3", "-1.25E-7"] {
            assert_eq!(number(good), Some(good.len()), "{good}");
        }
        for bad in ["-", "00", "01", "1.", "1.e", "1e", "1a", "1.5.2", "-x"] {
            assert_eq!(number(bad), None, "{bad}");
        }
    }
}
