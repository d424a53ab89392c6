//! What may be on the disk, given what was sent and how it ended.

/// Bytes of a slot. Slots are written and read by one request at a time.
pub const SLOT: usize = 8192;
/// Bytes that are written whole or not at all.
pub const BLOCK: usize = 512;

/// What a request does to its part of a slot.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Effect {
    Read,
    Write(Vec<u8>),
    Zeroes,
    /// Whole blocks read as zeroes afterwards, or as before.
    Discard,
    /// Of what is there with this.
    Compare(Vec<u8>),
    Flush,
}

/// What a slot may hold: each block of it is as in one of these.
#[derive(Clone)]
pub struct Slot {
    images: Vec<Vec<u8>>,
    /// What has been done to it, for whoever looks for what went wrong.
    pub history: Vec<String>,
}

impl Slot {
    /// Zeroes, as a new disk has them.
    pub fn new() -> Self {
        Self { images: vec![vec![0; SLOT]], history: Vec::new() }
    }

    /// What it holds, if that is certain.
    pub fn certain(&self) -> Option<&[u8]> {
        if let [image] = &self.images[..] { Some(image) } else { None }
    }

    pub fn possibilities(&self) -> usize {
        self.images.len()
    }

    /// Where in this part something is that cannot be.
    pub fn impossible(&self, at: usize, data: &[u8]) -> Option<usize> {
        let end = at + data.len();
        let mut start = at;
        while start < end {
            let stop = ((start / BLOCK + 1) * BLOCK).min(end);
            let found = &data[start - at..stop - at];
            if !self.images.iter().any(|image| &image[start..stop] == found) {
                return Some(start);
            }
            start = stop;
        }
        None
    }

    /// A request for `at..at + len` has ended.
    pub fn ended(&mut self, effect: &Effect, at: usize, len: usize, succeeded: bool) {
        let name = match effect {
            Effect::Write(data) => format!("Write({data:02x?}…)", data = &data[..data.len().min(4)]),
            Effect::Compare(_) => "Compare".into(),
            other => format!("{other:?}"),
        };
        self.history.push(format!("{name} of {at}+{len}: {}", if succeeded { "done" } else { "failed" }));
        let mut after = self.images.clone();
        let (first, last) = match effect {
            Effect::Discard => (at.next_multiple_of(BLOCK), (at + len) / BLOCK * BLOCK),
            _ => (at, at + len),
        };
        for image in &mut after {
            match effect {
                Effect::Write(data) => image[first..last].copy_from_slice(data),
                Effect::Zeroes => image[first..last].fill(0),
                Effect::Discard if first < last => image[first..last].fill(0),
                _ => return,
            }
        }
        if succeeded && *effect != Effect::Discard {
            self.images = after;
        } else {
            self.images.extend(after);
        }
        self.images.sort();
        self.images.dedup();
    }

    /// This was read, and is possible.
    pub fn was_read(&mut self, at: usize, data: &[u8]) {
        self.images.iter_mut().for_each(|image| image[at..at + data.len()].copy_from_slice(data));
        self.images.sort();
        self.images.dedup();
    }
}

#[test]
fn a_write_that_failed_leaves_each_block_as_it_was_or_as_it_was_to_be() {
    let mut slot = Slot::new();
    slot.ended(&Effect::Write(vec![1; 1024]), 0, 1024, true);
    assert_eq!(slot.certain().map(|image| (image[1023], image[1024])), Some((1, 0)));
    slot.ended(&Effect::Write(vec![2; 1024]), 512, 1024, false);
    let mut half = [vec![1; 512], vec![1; 512], vec![2; 512]].concat();
    assert_eq!(slot.impossible(0, &half), None);
    half[700] = 3;
    assert_eq!(slot.impossible(0, &half), Some(512));
    half[512..1024].fill(0);
    assert_eq!(slot.impossible(0, &half), Some(512), "neither");
    slot.was_read(0, &vec![1; SLOT]);
    assert_eq!(slot.possibilities(), 1);
}

#[test]
fn a_discard_is_advice_about_whole_blocks() {
    let mut slot = Slot::new();
    slot.ended(&Effect::Write(vec![1; SLOT]), 0, SLOT, true);
    slot.ended(&Effect::Discard, 100, 1000, true);
    let mut data = vec![1; SLOT];
    assert_eq!(slot.impossible(0, &data), None);
    data[512..1024].fill(0);
    assert_eq!(slot.impossible(0, &data), None);
    data[511] = 0;
    assert_eq!(slot.impossible(0, &data), Some(0));
}
