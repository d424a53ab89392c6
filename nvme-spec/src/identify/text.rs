//! Text within data structures: space-padded ASCII and NVMe Qualified Names (Base 2.0, 1.4.2 and 4.5).

use std::fmt;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// An ASCII string, left justified and padded with spaces (Base 2.0, 1.4.2).
#[derive(Clone, Copy, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(transparent)]
pub struct AsciiField<const N: usize>(pub [u8; N]);

impl<const N: usize> AsciiField<N> {
    /// The field with this text, or `None` if the text is longer or has anything but printable ASCII in it.
    pub const fn new(text: &str) -> Option<Self> {
        let text = text.as_bytes();
        let mut field = [b' '; N];
        if text.len() > N {
            return None;
        }
        let mut i = 0;
        while i < text.len() {
            if !matches!(text[i], b' '..=b'~') {
                return None;
            }
            field[i] = text[i];
            i += 1;
        }
        Some(Self(field))
    }
}

impl<const N: usize> Default for AsciiField<N> {
    fn default() -> Self {
        Self([b' '; N])
    }
}

impl<const N: usize> fmt::Display for AsciiField<N> {
    /// The text without its padding, and with `?` for what is not printable ASCII.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let padding = |b: &u8| matches!(b, b' ' | 0);
        let end = self.0.iter().rposition(|b| !padding(b)).map_or(0, |last| last + 1);
        let text: String =
            self.0[..end].iter().map(|&b| if matches!(b, b' '..=b'~') { b as char } else { '?' }).collect();
        f.pad(&text)
    }
}

impl<const N: usize> fmt::Debug for AsciiField<N> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "\"{self}\"")
    }
}

/// An NVMe Qualified Name: UTF-8, ended by a NUL, at most 223 bytes in a field of 256 (Base 2.0, 4.5).
#[derive(Clone, Copy, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(transparent)]
pub struct NvmeQualifiedName(pub [u8; 256]);

impl NvmeQualifiedName {
    /// The longest name, in bytes.
    pub const MAX_LENGTH: usize = 223;

    /// The field with this name, or `None` if the name is empty, too long or has a NUL in it.
    pub fn new(name: &str) -> Option<Self> {
        let name = name.as_bytes();
        if name.is_empty() || name.len() > Self::MAX_LENGTH || name.contains(&0) {
            return None;
        }
        let mut field = [0; 256];
        field[..name.len()].copy_from_slice(name);
        Some(Self(field))
    }

    /// The name, up to its NUL, or `None` if it is not UTF-8.
    pub fn as_str(&self) -> Option<&str> {
        let end = self.0.iter().position(|&b| b == 0).unwrap_or(self.0.len());
        str::from_utf8(&self.0[..end]).ok()
    }
}

impl Default for NvmeQualifiedName {
    fn default() -> Self {
        Self([0; 256])
    }
}

impl fmt::Display for NvmeQualifiedName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str().unwrap_or("(not UTF-8)"))
    }
}

impl fmt::Debug for NvmeQualifiedName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "\"{self}\"")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ascii_is_padded_with_spaces_and_shown_without() {
        let field = AsciiField::<8>::new("ring").unwrap();
        assert_eq!(field.0, *b"ring    ");
        assert_eq!(field.to_string(), "ring");
        assert_eq!(AsciiField::<4>::default().to_string(), "");
        assert_eq!(AsciiField(*b"a b\xFFc\0\0").to_string(), "a b?c");
    }

    #[test]
    fn ascii_that_does_not_fit_is_refused() {
        assert_eq!(AsciiField::<4>::new("rings"), None);
        assert_eq!(AsciiField::<4>::new("ä"), None);
        assert_eq!(AsciiField::<4>::new("a\0"), None);
        assert_eq!(AsciiField::<4>::new("full"), Some(AsciiField(*b"full")));
    }

    #[test]
    fn nqn_ends_with_a_nul() {
        let nqn = NvmeQualifiedName::new("nqn.2014-08.org.nvmexpress:uuid:x").unwrap();
        assert_eq!(nqn.as_str(), Some("nqn.2014-08.org.nvmexpress:uuid:x"));
        assert_eq!(NvmeQualifiedName::new(&"n".repeat(223)).unwrap().0[223..], [0; 33]);
        assert_eq!(NvmeQualifiedName::new(&"n".repeat(224)), None);
        assert_eq!(NvmeQualifiedName::new(""), None);
        assert_eq!(NvmeQualifiedName([0xFF; 256]).as_str(), None);
    }
}
