//! Media ranges of an `Accept` header (RFC 9110, section 12.5.1). The server of a route decides
//! between them.

/// A media range.
pub struct MediaRange<'t> {
    /// Type and subtype, in lower case; each may be `*`.
    pub name: String,
    /// The weight (`q`), from 0 to 1; 0 if it is not a number.
    pub weight: f32,
    /// The parameters: names in lower case, and values without quotes.
    parameters: Vec<(String, &'t str)>,
}

impl<'t> MediaRange<'t> {
    /// The ranges of one line of the header.
    pub fn listed(line: &'t str) -> impl Iterator<Item = Self> {
        line.split(',').map(Self::read)
    }

    fn read(range: &'t str) -> Self {
        let mut parts = range.split(';').map(str::trim);
        let name = parts.next().unwrap_or_default().to_ascii_lowercase();
        let parameters = parts
            .filter_map(|parameter| parameter.split_once('='))
            .map(|(name, value)| (name.trim().to_ascii_lowercase(), value.trim().trim_matches('"')))
            .collect();
        let mut range = Self { name, weight: 1.0, parameters };
        range.weight = range.parameter("q").map_or(1.0, |weight| weight.parse().unwrap_or_default());
        range
    }

    /// The value of a parameter, by its name in lower case.
    pub fn parameter(&self, wanted: &str) -> Option<&'t str> {
        self.parameters.iter().find(|(name, _)| name == wanted).map(|(_, value)| *value)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_list_is_read_range_by_range() {
        let ranges: Vec<_> =
            MediaRange::listed("Text/Plain; Version=\"0.0.4\";q=0.5, */*;q=much,a/b").collect();
        let names = ranges.iter().map(|range| (&*range.name, range.weight, range.parameter("version")));
        let expected = [("text/plain", 0.5, Some("0.0.4")), ("*/*", 0.0, None), ("a/b", 1.0, None)];
        assert_eq!(names.collect::<Vec<_>>(), expected);
    }
}
