//! What is under way between the parties, each at a number that its event knows.

#[derive(Debug)]
pub struct Post<L> {
    letters: Vec<Option<L>>,
    free: Vec<u32>,
}

impl<L> Default for Post<L> {
    fn default() -> Self {
        Post { letters: Vec::new(), free: Vec::new() }
    }
}

impl<L> Post<L> {
    pub fn put(&mut self, letter: L) -> u32 {
        if let Some(slot) = self.free.pop() {
            self.letters[slot as usize] = Some(letter);
            return slot;
        }
        self.letters.push(Some(letter));
        u32::try_from(self.letters.len() - 1).expect("letters under way fit")
    }

    pub fn peek(&self, slot: u32) -> &L {
        self.letters[slot as usize].as_ref().expect("a letter arrives once")
    }

    pub fn take(&mut self, slot: u32) -> L {
        self.free.push(slot);
        self.letters[slot as usize].take().expect("a letter arrives once")
    }

    pub fn under_way(&self) -> impl Iterator<Item = &L> {
        self.letters.iter().flatten()
    }

    pub fn count(&self) -> usize {
        self.letters.len() - self.free.len()
    }
}
