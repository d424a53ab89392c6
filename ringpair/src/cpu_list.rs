//! Lists of CPUs as the kernel writes them: `0-3,8`.

use std::str::FromStr;

/// CPU numbers, in the order in which they were given.
#[derive(Clone, Debug, Default, PartialEq, Eq, serde::Deserialize)]
#[serde(try_from = "String")]
pub struct CpuList(pub Vec<usize>);

/// More than any machine has; keeps `0-99999999999` from becoming a list.
const MAX_CPU: usize = rustix::thread::CpuSet::MAX_CPU - 1;

impl FromStr for CpuList {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || format!("`{text}` is not a list of CPUs from 0 to {MAX_CPU} such as 0-3,8");
        let number = |text: &str| text.parse().ok().filter(|&cpu| cpu <= MAX_CPU).ok_or_else(wrong);
        let mut cpus = Vec::new();
        for piece in text.split(',') {
            let (first, last) = match piece.split_once('-') {
                Some((first, last)) => (number(first)?, number(last)?),
                None => (number(piece)?, number(piece)?),
            };
            if first > last || (first..=last).any(|cpu| cpus.contains(&cpu)) {
                return Err(wrong());
            }
            cpus.extend(first..=last);
        }
        Ok(Self(cpus))
    }
}

impl TryFrom<String> for CpuList {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_and_ranges_are_read_in_order() {
        assert_eq!("3,0-2,8".parse(), Ok(CpuList(vec![3, 0, 1, 2, 8])));
    }

    #[test]
    fn what_is_not_a_list_is_refused_by_name() {
        for text in ["", "a", "1,", "3-1", "1,1", "0-2,1", "-1", "0-99999999999"] {
            let error = text.parse::<CpuList>().unwrap_err();
            assert!(error.contains(&format!("`{text}`")), "{error}");
        }
    }
}
