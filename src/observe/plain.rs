//! Text that came from outside, made fit for a line of the log and for a terminal.

use std::borrow::Cow;

/// With a blank for each control character: what a node or another host says must not begin a line of its own, nor steer a terminal.
pub fn plain(text: &str) -> Cow<'_, str> {
    if text.contains(char::is_control) {
        Cow::Owned(text.replace(char::is_control, " "))
    } else {
        Cow::Borrowed(text)
    }
}

#[cfg(test)]
mod tests {
    use super::plain;

    #[test]
    fn control_characters_become_blanks() {
        assert_eq!(plain("keeper-a µs …"), "keeper-a µs …");
        assert_eq!(plain("a\nERROR b\u{1b}[2J\u{9b}1m"), "a ERROR b [2J 1m");
    }
}
