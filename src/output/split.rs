//! Bytes to lines.

/// Longer lines are split.
pub const LINE_MAX: usize = 16 * 1024;

/// Puts the lines of one stream together, whatever the pieces they come in.
#[derive(Debug, Default)]
pub struct Splitter {
    partial: Vec<u8>,
}

impl Splitter {
    /// No line has begun.
    pub fn is_empty(&self) -> bool {
        self.partial.is_empty()
    }

    /// Hands on every line that is complete, without its end, and whether it continues in the next because it is too long.
    pub fn feed(&mut self, mut bytes: &[u8], mut line: impl FnMut(&[u8], bool)) {
        while !bytes.is_empty() {
            let room = LINE_MAX - self.partial.len();
            let reach = &bytes[..bytes.len().min(room + 1)];
            match reach.iter().position(|byte| *byte == b'\n') {
                Some(end) => {
                    self.partial.extend_from_slice(&bytes[..end]);
                    line(self.partial.strip_suffix(b"\r").unwrap_or(&self.partial), false);
                    self.partial.clear();
                    bytes = &bytes[end + 1..];
                }
                None if bytes.len() > room => {
                    self.partial.extend_from_slice(&bytes[..room]);
                    line(&self.partial, true);
                    self.partial.clear();
                    bytes = &bytes[room..];
                }
                None => {
                    self.partial.extend_from_slice(bytes);
                    bytes = &[];
                }
            }
        }
    }

    /// Hands on what has no end yet.
    pub fn flush(&mut self, mut line: impl FnMut(&[u8], bool)) {
        if !self.partial.is_empty() {
            line(&self.partial, false);
            self.partial.clear();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn lines(pieces: &[&[u8]]) -> Vec<(Vec<u8>, bool)> {
        let mut splitter = Splitter::default();
        let mut lines = Vec::new();
        for piece in pieces {
            splitter.feed(piece, |line, continues| lines.push((line.to_vec(), continues)));
        }
        splitter.flush(|line, continues| lines.push((line.to_vec(), continues)));
        lines
    }

    #[test]
    fn lines_are_put_together_from_any_pieces() {
        let seen = lines(&[b"on", b"e\ntwo\r\n\nthr", b"ee"]);
        let expected = [&b"one"[..], b"two", b"", b"three"].map(|line| (line.to_vec(), false));
        assert_eq!(seen, expected);
    }

    #[test]
    fn a_line_longer_than_the_limit_is_split_and_marked() {
        let long = vec![b'x'; LINE_MAX * 2 + 5];
        let lengths: Vec<_> =
            lines(&[&long, b"\n"]).iter().map(|(line, continues)| (line.len(), *continues)).collect();
        assert_eq!(lengths, [(LINE_MAX, true), (LINE_MAX, true), (5, false)]);
    }

    #[test]
    fn a_line_of_exactly_the_limit_is_one_line() {
        let full = vec![b'x'; LINE_MAX];
        assert_eq!(lines(&[&full, b"\n"]), [(full.clone(), false)]);
        assert_eq!(lines(&[&full]), [(full, false)]);
    }

    /// The rule without buffers: split at newlines, drop one carriage return, cut at the limit.
    fn reference(bytes: &[u8]) -> Vec<(Vec<u8>, bool)> {
        let mut lines = Vec::new();
        let mut parts: Vec<&[u8]> = bytes.split(|byte| *byte == b'\n').collect();
        let last = parts.pop().unwrap_or_default();
        let mut cut = |mut line: &[u8], ended: bool| {
            while line.len() > LINE_MAX {
                lines.push((line[..LINE_MAX].to_vec(), true));
                line = &line[LINE_MAX..];
            }
            if ended {
                lines.push((line.strip_suffix(b"\r").unwrap_or(line).to_vec(), false));
            } else if !line.is_empty() {
                lines.push((line.to_vec(), false));
            }
        };
        parts.iter().for_each(|part| cut(part, true));
        cut(last, false);
        lines
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn no_byte_is_lost_however_it_is_cut(
            runs in prop::collection::vec((prop_oneof![Just(b'\n'), Just(b'\r'), any::<u8>()], prop_oneof![4 => 1_usize..4, 1 => 16_000_usize..17_000]), 0..12),
            cuts in prop::collection::vec(1_usize..40_000, 0..8),
        ) {
            let bytes: Vec<u8> = runs.iter().flat_map(|(byte, count)| std::iter::repeat_n(*byte, *count)).collect();
            let mut rest = bytes.as_slice();
            let mut pieces = Vec::new();
            for cut in cuts {
                let (piece, after) = rest.split_at(cut.min(rest.len()));
                pieces.push(piece);
                rest = after;
            }
            pieces.push(rest);
            prop_assert_eq!(lines(&pieces), reference(&bytes));
        }
    }
}
