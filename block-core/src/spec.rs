//! How a person names a disk: `[scheme:]location[,option=value…]`.
//!
//! * A *scheme* is lower-case letters, digits, `+`, `-` and `.`, and begins with a letter; without one the location is
//!   a file. A file whose name has a colon in it is written `./na:me` or `file:na:me`.
//! * The *location* is whatever the scheme makes of it: a path, a size, `//host/path`. It keeps the slashes of
//!   `nvme://…`.
//! * *Options* follow, each once. A comma in a location or a value is written twice, as in QEMU.
//!
//! Several layers take options from the same text. Each takes its own out of the [`DiskSpec`]; the last one calls
//! [`DiskSpec::finish`], and what is left then is an error that lists every option somebody asked for.

use std::fmt;
use std::str::FromStr;

/// A parsed disk name, from which the layers take their options one after another.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DiskSpec {
    text: String,
    scheme: Option<String>,
    location: String,
    options: Vec<(String, String)>,
    asked_for: Vec<&'static str>,
}

/// What is wrong with a disk's name or options. Each is one line for the person who wrote them.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SpecError {
    /// Nothing before the first comma.
    #[error("`{text}` names no disk: expected [scheme:]location[,option=value…]")]
    NoLocation {
        /// The whole name.
        text: String,
    },
    /// An option without `=`, or without a name.
    #[error("`{option}` in `{text}` is not an option=value (a comma in a name is written twice)")]
    NotAnOption {
        /// The piece between two commas.
        option: String,
        /// The whole name.
        text: String,
    },
    /// The same option twice.
    #[error("option `{option}` is given twice in `{text}`")]
    Twice {
        /// The option.
        option: String,
        /// The whole name.
        text: String,
    },
    /// An option whose value is not one that it takes.
    #[error("`{option}={value}` in `{text}`: {option} takes {accepted}")]
    BadValue {
        /// The option.
        option: String,
        /// What it was given.
        value: String,
        /// What it takes.
        accepted: String,
        /// The whole name.
        text: String,
    },
    /// An option that nobody knows.
    #[error("unknown option `{option}={value}` in `{text}`: {}", known_options(.accepted))]
    UnknownOption {
        /// The option.
        option: String,
        /// What it was given.
        value: String,
        /// Those that exist for this disk.
        accepted: Vec<&'static str>,
        /// The whole name.
        text: String,
    },
}

fn known_options(names: &[&str]) -> String {
    match names {
        [] => "this disk takes no options".to_owned(),
        names => format!("this disk takes {}", names.join(", ")),
    }
}

impl DiskSpec {
    /// The scheme, if one was given.
    pub fn scheme(&self) -> Option<&str> {
        self.scheme.as_deref()
    }

    /// What stands after the scheme's colon, before the options; for a file, its path.
    pub fn location(&self) -> &str {
        &self.location
    }

    /// Takes an option out: `None` if it was not given. `name` is from now on among those that
    /// [`DiskSpec::finish`] lists.
    pub fn take(&mut self, name: &'static str) -> Option<String> {
        if !self.asked_for.contains(&name) {
            self.asked_for.push(name);
        }
        let at = self.options.iter().position(|(option, _)| option == name)?;
        Some(self.options.remove(at).1)
    }

    /// Takes an option whose value `parse` understands; `accepted` completes the sentence "`name` takes …".
    ///
    /// # Errors
    ///
    /// [`SpecError::BadValue`] where `parse` returns `None`.
    pub fn take_parsed<T>(
        &mut self,
        name: &'static str,
        accepted: &str,
        parse: impl FnOnce(&str) -> Option<T>,
    ) -> Result<Option<T>, SpecError> {
        let Some(value) = self.take(name) else { return Ok(None) };
        match parse(&value) {
            Some(parsed) => Ok(Some(parsed)),
            None => Err(self.bad_value(name, &value, accepted)),
        }
    }

    /// Takes an option that is one of several words.
    ///
    /// # Errors
    ///
    /// [`SpecError::BadValue`], listing the words.
    pub fn take_word<T: Copy>(
        &mut self,
        name: &'static str,
        words: &[(&str, T)],
    ) -> Result<Option<T>, SpecError> {
        let accepted = words.iter().map(|(word, _)| *word).collect::<Vec<_>>().join("|");
        self.take_parsed(name, &accepted, |value| {
            words.iter().find(|(word, _)| *word == value).map(|(_, meaning)| *meaning)
        })
    }

    /// Takes an option that is `on` or `off`.
    ///
    /// # Errors
    ///
    /// [`SpecError::BadValue`] for anything else.
    pub fn take_switch(&mut self, name: &'static str) -> Result<Option<bool>, SpecError> {
        self.take_word(name, &[("on", true), ("off", false)])
    }

    /// Takes an option that is a size: see [`parse_size`].
    ///
    /// # Errors
    ///
    /// [`SpecError::BadValue`] for what is not a size.
    pub fn take_size(&mut self, name: &'static str) -> Result<Option<u64>, SpecError> {
        self.take_parsed(name, SIZE, parse_size)
    }

    /// Says that an option's value will not do: for checks that need more than the value itself.
    pub fn bad_value(&self, option: &str, value: &str, accepted: &str) -> SpecError {
        SpecError::BadValue {
            option: option.to_owned(),
            value: value.to_owned(),
            accepted: accepted.to_owned(),
            text: self.text.clone(),
        }
    }

    /// Ends the taking.
    ///
    /// # Errors
    ///
    /// [`SpecError::UnknownOption`] if an option is left that nobody took.
    pub fn finish(&self) -> Result<(), SpecError> {
        match self.options.first() {
            None => Ok(()),
            Some((option, value)) => Err(SpecError::UnknownOption {
                option: option.clone(),
                value: value.clone(),
                accepted: self.asked_for.clone(),
                text: self.text.clone(),
            }),
        }
    }
}

/// The whole name as it was written, options that were taken included.
impl fmt::Display for DiskSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl FromStr for DiskSpec {
    type Err = SpecError;

    fn from_str(text: &str) -> Result<Self, SpecError> {
        let mut fields = split_fields(text).into_iter();
        let first = fields.next().unwrap_or_default();
        let (scheme, location) = split_scheme(&first);
        if location.is_empty() {
            return Err(SpecError::NoLocation { text: text.to_owned() });
        }
        let mut options: Vec<(String, String)> = Vec::new();
        for field in fields {
            let (name, value) = match field.split_once('=') {
                Some((name, value)) if !name.is_empty() => (name.to_owned(), value.to_owned()),
                _ => return Err(SpecError::NotAnOption { option: field, text: text.to_owned() }),
            };
            if options.iter().any(|(earlier, _)| *earlier == name) {
                return Err(SpecError::Twice { option: name, text: text.to_owned() });
            }
            options.push((name, value));
        }
        Ok(Self {
            text: text.to_owned(),
            scheme: scheme.map(str::to_owned),
            location: location.to_owned(),
            options,
            asked_for: Vec::new(),
        })
    }
}

/// Splits at single commas; two in a row are one that belongs to the field.
fn split_fields(text: &str) -> Vec<String> {
    let mut fields = vec![String::new()];
    let mut rest = text.chars().peekable();
    while let Some(c) = rest.next() {
        if c == ',' && rest.next_if_eq(&',').is_none() {
            fields.push(String::new());
        } else if let Some(field) = fields.last_mut() {
            field.push(c);
        }
    }
    fields
}

/// Splits off a scheme, if what stands before the first colon is one: no slash, no capital, no leading digit.
fn split_scheme(field: &str) -> (Option<&str>, &str) {
    let is_scheme = |s: &str| {
        s.starts_with(|c: char| c.is_ascii_lowercase())
            && s.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || "+-.".contains(c))
    };
    match field.split_once(':') {
        Some((scheme, location)) if is_scheme(scheme) => (Some(scheme), location),
        _ => (None, field),
    }
}

/// What [`parse_size`] takes, to complete the sentence "… takes".
pub const SIZE: &str = "a size in bytes, such as 4096, 64K, 512M, 20G or 1T";

/// A size: a decimal number, with a suffix of `K`, `M`, `G`, `T`, `P` or `E` for powers of 1024 (lower case too).
/// `None` for anything else, and for what does not fit in 64 bits.
pub fn parse_size(text: &str) -> Option<u64> {
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    let (number, suffix) = text.split_at_checked(digits)?;
    let shift = match suffix {
        "" => 0,
        "k" | "K" => 10,
        "m" | "M" => 20,
        "g" | "G" => 30,
        "t" | "T" => 40,
        "p" | "P" => 50,
        "e" | "E" => 60,
        _ => return None,
    };
    number.parse::<u64>().ok()?.checked_mul(1 << shift)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn spec(text: &str) -> DiskSpec {
        text.parse().unwrap()
    }

    #[test]
    fn a_bare_path_has_no_scheme() {
        let disk = spec("/var/lib/disk.img");
        assert_eq!((disk.scheme(), disk.location()), (None, "/var/lib/disk.img"));
    }

    #[test]
    fn the_scheme_ends_at_the_first_colon_and_the_location_keeps_its_slashes() {
        for (text, scheme, location) in [
            ("mem:1G", "mem", "1G"),
            ("nvme://0000:01:00.0/1", "nvme", "//0000:01:00.0/1"),
            ("nbd+unix:///disk?socket=/run/nbd.sock", "nbd+unix", "///disk?socket=/run/nbd.sock"),
            ("file:odd:name.img", "file", "odd:name.img"),
        ] {
            let disk = spec(text);
            assert_eq!((disk.scheme(), disk.location()), (Some(scheme), location), "{text}");
        }
    }

    #[test]
    fn a_colon_after_a_slash_belongs_to_the_path() {
        assert_eq!(spec("./odd:name.img").scheme(), None);
        assert_eq!(
            spec("/dev/disk/by-path/pci-0000:00:1f.2").location(),
            "/dev/disk/by-path/pci-0000:00:1f.2"
        );
        assert_eq!(spec("2024-01-01T10:30.img").location(), "2024-01-01T10:30.img");
    }

    #[test]
    fn options_are_taken_once_and_the_text_stays() {
        let mut disk = spec("a.img,cache=none,readonly=on");
        assert_eq!(disk.take("cache").as_deref(), Some("none"));
        assert_eq!(disk.take("cache"), None);
        assert_eq!(disk.take_switch("readonly"), Ok(Some(true)));
        assert_eq!(disk.finish(), Ok(()));
        assert_eq!(disk.to_string(), "a.img,cache=none,readonly=on");
    }

    #[test]
    fn a_doubled_comma_is_a_comma() {
        let mut disk = spec("a,,b.img,label=x,,y=z,,");
        assert_eq!(disk.location(), "a,b.img");
        assert_eq!(disk.take("label").as_deref(), Some("x,y=z,"));
    }

    #[test]
    fn an_unknown_option_names_itself_and_every_option_that_was_asked_for() {
        let mut disk = spec("a.img,chache=none");
        let _ = disk.take("uuid");
        let _ = disk.take("cache");
        assert_eq!(
            disk.finish().unwrap_err().to_string(),
            "unknown option `chache=none` in `a.img,chache=none`: this disk takes uuid, cache"
        );
    }

    #[test]
    fn a_wrong_value_names_what_is_accepted() {
        let error = spec("a.img,readonly=yes").take_switch("readonly").unwrap_err();
        assert_eq!(error.to_string(), "`readonly=yes` in `a.img,readonly=yes`: readonly takes on|off");
        let error = spec("a.img,lba=4Q").take_size("lba").unwrap_err();
        assert!(error.to_string().contains("lba takes a size in bytes, such as"), "{error}");
    }

    #[test]
    fn malformed_texts_are_refused() {
        for text in ["", ",cache=none", "mem:", "mem:,a=b"] {
            assert!(matches!(text.parse::<DiskSpec>(), Err(SpecError::NoLocation { .. })), "{text}");
        }
        for text in ["a.img,", "a.img,readonly", "a.img,=on", "a.img,cache=none,"] {
            assert!(matches!(text.parse::<DiskSpec>(), Err(SpecError::NotAnOption { .. })), "{text}");
        }
        assert!(matches!("a,b=1,b=2".parse::<DiskSpec>(), Err(SpecError::Twice { .. })));
    }

    #[test]
    fn sizes_take_suffixes_and_refuse_what_does_not_fit() {
        for (text, size) in [
            ("0", Some(0)),
            ("512", Some(512)),
            ("4k", Some(4096)),
            ("1G", Some(1 << 30)),
            ("1T", Some(1 << 40)),
            ("15E", Some(15 << 60)),
            ("16E", None),
            ("18446744073709551615", Some(u64::MAX)),
            ("18446744073709551616", None),
            ("", None),
            ("K", None),
            ("1KB", None),
            ("-1", None),
            ("+1", None),
            ("1.5G", None),
            ("1é", None),
        ] {
            assert_eq!(parse_size(text), size, "{text}");
        }
    }

    proptest! {
        #[test]
        fn parsing_never_panics(text in ".{0,60}") {
            let _ = text.parse::<DiskSpec>();
            let _ = parse_size(&text);
        }

        #[test]
        fn what_is_written_with_doubled_commas_is_read_back(
            location in "/[a-z,:=]{1,20}", name in "[a-z-]{1,8}", value in "[a-z,:=]{0,20}",
        ) {
            let escaped = |s: &str| s.replace(',', ",,");
            let name: &'static str = name.leak();
            let mut disk = spec(&format!("{},{name}={}", escaped(&location), escaped(&value)));
            prop_assert_eq!(disk.location(), &location);
            prop_assert_eq!(disk.take(name), Some(value));
            prop_assert_eq!(disk.finish(), Ok(()));
        }
    }
}
