//! Where each page of a guest's memory comes from, and which pages are where they belong.

use std::ops::Range;

use crate::format::PAGE;

/// Where a stretch of memory comes from. The number is where its first page is in that file, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Origin {
    Zero,
    Base(u64),
    Layer(u64),
}

impl Origin {
    /// The origin `bytes` further on.
    fn advanced(self, bytes: u64) -> Self {
        match self {
            Self::Zero => Self::Zero,
            Self::Base(at) => Self::Base(at + bytes),
            Self::Layer(at) => Self::Layer(at + bytes),
        }
    }
}

/// The origin of every page of a memory.
#[derive(Debug)]
pub(crate) struct PageMap {
    memory_bytes: u64,
    /// Stretches by start, from 0 on, each reaching to the next, none continuing the one before.
    stretches: Vec<(u64, Origin)>,
}

impl PageMap {
    /// From the parts of the base that are not holes, and the pieces of a layer above it; both of whole pages, in
    /// order, within the memory.
    pub(crate) fn new(
        memory_bytes: u64,
        base: &[Range<u64>],
        layer: impl Iterator<Item = (Range<u64>, Option<Range<u64>>)>,
    ) -> Self {
        let mut map = Self { memory_bytes, stretches: Vec::new() };
        let mut base = base.iter().cloned().peekable();
        let mut at = 0;
        for (run, data) in layer.chain([(memory_bytes..memory_bytes, None)]) {
            // What lies between the layer's runs is the base's.
            while at < run.start {
                match base.peek() {
                    Some(part) if part.end <= at => {
                        base.next();
                    }
                    Some(part) if part.start <= at => {
                        map.push(at, Origin::Base(at));
                        at = part.end.min(run.start);
                    }
                    next => {
                        map.push(at, Origin::Zero);
                        at = next.map_or(run.start, |part| part.start.min(run.start));
                    }
                }
            }
            if !run.is_empty() {
                map.push(at, data.map_or(Origin::Zero, |data| Origin::Layer(data.start)));
                at = run.end;
            }
        }
        map.stretches.shrink_to_fit();
        map
    }

    fn push(&mut self, start: u64, origin: Origin) {
        let continues = self.stretches.last().is_some_and(|&(from, last)| last.advanced(start - from) == origin);
        if !continues {
            self.stretches.push((start, origin));
        }
    }

    /// The origin of an offset within the memory, and the stretch of pages around it that continue it: each page's
    /// origin is as far from that of the offset as the page is.
    pub(crate) fn find(&self, offset: u64) -> (Origin, Range<u64>) {
        let after = self.stretches.partition_point(|&(start, _)| start <= offset);
        let (start, origin) = self.stretches[after - 1];
        let end = self.stretches.get(after).map_or(self.memory_bytes, |&(start, _)| start);
        (origin.advanced(offset - start), start..end)
    }
}

/// A set of pages of a memory: one bit each, 32 KiB for a GiB.
#[derive(Debug)]
pub(crate) struct PageSet(Vec<u64>);

impl PageSet {
    pub(crate) fn new(memory_bytes: u64) -> Self {
        Self(vec![0; memory_bytes.div_ceil(PAGE * 64) as usize])
    }

    pub(crate) fn contains(&self, offset: u64) -> bool {
        let page = offset / PAGE;
        self.0[(page / 64) as usize] & 1 << (page % 64) != 0
    }

    pub(crate) fn insert(&mut self, offsets: Range<u64>) {
        self.each_word(offsets, |word, mask| *word |= mask);
    }

    pub(crate) fn remove(&mut self, offsets: Range<u64>) {
        self.each_word(offsets, |word, mask| *word &= !mask);
    }

    fn each_word(&mut self, offsets: Range<u64>, change: impl Fn(&mut u64, u64)) {
        let (mut page, end) = (offsets.start / PAGE, offsets.end.div_ceil(PAGE));
        while page < end {
            let next = (page / 64 + 1) * 64;
            let mask = u64::MAX << (page % 64);
            let mask = if next > end { mask & u64::MAX >> (next - end) } else { mask };
            change(&mut self.0[(page / 64) as usize], mask);
            page = next;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_memory_without_layer_and_holes_is_one_stretch() {
        let whole = std::slice::from_ref(&(0..16 * PAGE));
        let map = PageMap::new(16 * PAGE, whole, std::iter::empty());
        assert_eq!(map.find(5 * PAGE), (Origin::Base(5 * PAGE), 0..16 * PAGE));
        let map = PageMap::new(16 * PAGE, &[], std::iter::empty());
        assert_eq!(map.find(5 * PAGE), (Origin::Zero, 0..16 * PAGE));
    }

    /// Pages of one kind joined to runs.
    fn runs(kinds: &[u8], joined: impl Fn(u8) -> Option<u8>) -> Vec<(u8, Range<u64>)> {
        let mut runs: Vec<(u8, Range<u64>)> = Vec::new();
        for (page, kind) in kinds.iter().enumerate() {
            let Some(kind) = joined(*kind) else { continue };
            let start = page as u64 * PAGE;
            match runs.last_mut() {
                Some((last, run)) if *last == kind && run.end == start => run.end += PAGE,
                _ => runs.push((kind, start..start + PAGE)),
            }
        }
        runs
    }

    proptest! {
        /// Kinds: bit 0 the base has data; then 0 not in the layer, 1 zero in it, 2 data in it.
        #[test]
        fn every_page_is_found_where_it_is(kinds in prop::collection::vec(0u8..6, 1..300)) {
            let bytes = kinds.len() as u64 * PAGE;
            let base: Vec<_> = runs(&kinds, |kind| (kind & 1 == 1).then_some(0)).into_iter().map(|run| run.1).collect();
            let mut data_at = 48;
            let layer: Vec<_> = runs(&kinds, |kind| (kind > 1).then_some(kind >> 1))
                .into_iter()
                .map(|(kind, run)| {
                    let data = (kind == 2).then(|| data_at..data_at + (run.end - run.start));
                    data_at = data.as_ref().map_or(data_at, |data| data.end);
                    (run, data)
                })
                .collect();
            let map = PageMap::new(bytes, &base, layer.into_iter());
            let mut data_at = 48;
            let mut pages = Vec::new();
            for (page, kind) in kinds.iter().enumerate() {
                let offset = page as u64 * PAGE;
                let expected = match kind {
                    4 | 5 => {
                        data_at += PAGE;
                        Origin::Layer(data_at - PAGE)
                    }
                    1 => Origin::Base(offset),
                    _ => Origin::Zero,
                };
                let (origin, stretch) = map.find(offset);
                prop_assert_eq!(origin, expected, "page {}", page);
                prop_assert!(stretch.contains(&offset) && stretch.end <= bytes);
                pages.push((origin, stretch));
            }
            for (origin, stretch) in &pages {
                let first = pages[(stretch.start / PAGE) as usize].0;
                let at = pages.iter().position(|page| std::ptr::eq(&page.0, origin)).unwrap() as u64 * PAGE;
                prop_assert_eq!(first.advanced(at - stretch.start), *origin);
            }
        }

        #[test]
        fn a_set_of_pages_is_a_set(changes in prop::collection::vec((any::<bool>(), 0u64..300, 0u64..200), 0..20)) {
            let mut set = PageSet::new(500 * PAGE);
            let mut model = std::collections::BTreeSet::new();
            for (add, start, pages) in changes {
                let offsets = start * PAGE..(start + pages) * PAGE;
                if add {
                    set.insert(offsets);
                    model.extend(start..start + pages);
                } else {
                    set.remove(offsets);
                    model.retain(|page| !(start..start + pages).contains(page));
                }
            }
            for page in 0..500 {
                prop_assert_eq!(set.contains(page * PAGE), model.contains(&page), "page {}", page);
            }
        }
    }
}
