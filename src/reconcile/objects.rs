//! Splits an exported text into objects: JSON Lines, a JSON array, or an array inside the single
//! object that some exports wrap around it, and several of those in a row. Only one object is in
//! memory at a time. A torn object does not affect the others.

use std::io::{BufRead, Result};

/// The largest size of a record.
const MAX_BYTES: usize = 8 << 20;
/// What precedes the array of an export that is a single object: CloudTrail's files, its look-up,
/// Azure's older blobs, and the output of Azure's command line.
const WRAPPERS: [&str; 5] =
    [r#"{"Records":"#, r#"{"records":"#, r#"{"Events":"#, r#"{"events":"#, r#"{"value":"#];

/// The longest wrapper, including white space. Each array in an object is checked for being wrapped
/// by one.
const LONGEST_WRAPPER: usize = 256;

/// The objects of a text, in order.
pub(super) struct Objects<R> {
    input: R,
    line: u64,
    /// A byte that was read but not processed yet.
    again: Option<u8>,
}

/// One object of the text.
pub(super) struct Object {
    /// The line where it begins, counted from 1.
    pub(super) line: u64,
    /// Its text; `None` if this is not an object, or one that is torn or too long.
    pub(super) text: Option<Vec<u8>>,
}

/// How the reading of an object ended.
enum End {
    Whole,
    Wrapper,
    Torn,
}

impl<R: BufRead> Objects<R> {
    pub(super) fn new(input: R) -> Self {
        Self { input, line: 1, again: None }
    }

    /// Returns the next object; `None` at the end.
    ///
    /// # Errors
    /// The text cannot be read.
    pub(super) fn next(&mut self) -> Result<Option<Object>> {
        while let Some(byte) = self.byte()? {
            match byte {
                // These occur between objects. The last three are the byte order mark that some
                // programs write before UTF-8.
                b' ' | b'\t' | b'\r' | b'\n' | b',' | b'[' | b']' | b'}' | 0xef | 0xbb | 0xbf => {}
                b'{' => {
                    let line = self.line;
                    let mut text = vec![byte];
                    match self.rest(&mut text)? {
                        End::Whole => return Ok(Some(Object { line, text: Some(text) })),
                        End::Torn => return Ok(Some(Object { line, text: None })),
                        End::Wrapper => {}
                    }
                }
                _ => {
                    let line = self.line;
                    while self.byte()?.is_some_and(|byte| byte != b'\n') {}
                    return Ok(Some(Object { line, text: None }));
                }
            }
        }
        Ok(None)
    }

    /// Reads up to the brace that closes the first one.
    fn rest(&mut self, text: &mut Vec<u8>) -> Result<End> {
        let (mut depth, mut in_string, mut escaped, mut line_began) = (1_u32, false, false, false);
        let mut too_long = false;
        while let Some(byte) = self.byte()? {
            // A string never holds a raw line break, and in exports no nested object begins a line.
            if byte == b'\n' && in_string {
                return Ok(End::Torn);
            }
            if byte == b'{' && line_began {
                self.again = Some(byte);
                return Ok(End::Torn);
            }
            line_began = byte == b'\n';
            match byte {
                _ if escaped => escaped = false,
                b'\\' if in_string => escaped = true,
                b'"' => in_string = !in_string,
                _ if in_string => {}
                b'[' if depth == 1 && text.len() <= LONGEST_WRAPPER && wraps(text) => {
                    return Ok(End::Wrapper);
                }
                b'{' | b'[' => depth += 1,
                b'}' | b']' => depth -= 1,
                _ => {}
            }
            too_long = too_long || text.len() == MAX_BYTES;
            if !too_long {
                text.push(byte);
            }
            if depth == 0 {
                return Ok(if too_long { End::Torn } else { End::Whole });
            }
        }
        Ok(End::Torn)
    }

    fn byte(&mut self) -> Result<Option<u8>> {
        if let Some(byte) = self.again.take() {
            return Ok(Some(byte));
        }
        let Some(byte) = self.input.fill_buf()?.first().copied() else { return Ok(None) };
        self.input.consume(1);
        if byte == b'\n' {
            self.line += 1;
        }
        Ok(Some(byte))
    }
}

fn wraps(text: &[u8]) -> bool {
    let plain: Vec<u8> = text.iter().copied().filter(|byte| !byte.is_ascii_whitespace()).take(16).collect();
    WRAPPERS.iter().any(|wrapper| wrapper.as_bytes() == plain)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Vec<(u64, Option<String>)> {
        let mut objects = Objects::new(text.as_bytes());
        let mut found = Vec::new();
        while let Some(object) = objects.next().unwrap() {
            found.push((object.line, object.text.map(|text| String::from_utf8(text).unwrap())));
        }
        found
    }

    fn whole(line: u64, text: &str) -> (u64, Option<String>) {
        (line, Some(text.to_owned()))
    }

    #[test]
    fn lines_arrays_and_wrapped_arrays_give_the_same_objects() {
        let (one, two) = (r#"{"a":"}\"{","b":[{"c":{}}]}"#, r#"{"d":[]}"#);
        let both = [whole(1, one), whole(1, two)];
        assert_eq!(read(&format!("{one}\n{two}\n")), [whole(1, one), whole(2, two)]);
        assert_eq!(read(&format!("[{one},{two}]")), both);
        assert_eq!(read(&format!(r#"{{"Records":[{one},{two}]}}"#)), both);
        assert_eq!(read(&format!(r#"{{ "records" : [ {one} , {two} ] }}"#)), both);
        assert_eq!(read(&format!(r#"{{"Records":[{one}]}}{{"Records":[{two}]}}"#)), both);
        assert_eq!(read("\u{feff}{}"), [whole(1, "{}")]);
    }

    #[test]
    fn an_object_may_have_many_lines() {
        let text = "[\n  {\n    \"a\": {\n      \"b\": 1\n    }\n  },\n  {}\n]\n";
        let found = read(text);
        assert_eq!(found.len(), 2);
        assert_eq!((found[0].0, found[1].0), (2, 7));
    }

    #[test]
    fn what_is_torn_costs_itself_alone() {
        assert_eq!(read("{\"a\":{\n{\"b\":1}\n"), [(1, None), whole(2, "{\"b\":1}")]);
        assert_eq!(read("{\"a\":\"x\n{\"b\":1}\n"), [(1, None), whole(2, "{\"b\":1}")]);
        assert_eq!(read("nonsense { }\n{}"), [(1, None), whole(2, "{}")]);
        assert_eq!(read("{}\n{\"a\":"), [whole(1, "{}"), (2, None)]);
        assert_eq!(read(""), []);
        assert_eq!(read("]]}}"), []);
    }

    #[test]
    fn one_that_is_too_long_is_passed_over() {
        let long = format!("{{\"a\":\"{}\"}}\n{{}}", "x".repeat(MAX_BYTES));
        assert_eq!(read(&long), [(1, None), whole(2, "{}")]);
    }

    #[test]
    fn arrays_after_white_space_cost_no_more_than_their_length() {
        let text = format!("{{{}{}}}", " ".repeat(4 << 20), "[],".repeat(1 << 20));
        assert_eq!(read(&text), [whole(1, &text)]);
    }

    #[test]
    fn no_text_makes_it_panic() {
        let seeds =
            [r#"{"Records":[{"a":"\"}"}]}"#, "{{{{", "\"\\", "[{]}", "{\"value\":[[", "\u{feff}\u{0}"];
        for seed in seeds {
            for end in 0..=seed.len() {
                let _ = String::from_utf8_lossy(&seed.as_bytes()[..end]);
                let mut objects = Objects::new(&seed.as_bytes()[..end]);
                while objects.next().unwrap().is_some() {}
            }
        }
    }
}
