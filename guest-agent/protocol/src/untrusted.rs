//! Text that a guest has sent, made safe for logs and for containerd.

/// Longest text of a guest that is passed on, in characters.
pub const MAX_TEXT: usize = 1024;

/// A guest's text, cut to [`MAX_TEXT`] characters, with each control character replaced by a blank.
#[must_use]
pub fn text(text: &str) -> String {
    text.chars().take(MAX_TEXT).map(|c| if c.is_control() { ' ' } else { c }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_guests_text_is_cut_and_has_no_control_characters() {
        let long = text(&format!("a\nb\u{1b}[2J{}", "é".repeat(5000)));
        assert_eq!(long.chars().count(), MAX_TEXT);
        assert!(long.starts_with("a b [2Jéé"), "{long}");
        assert_eq!(text("as it is"), "as it is");
    }
}
