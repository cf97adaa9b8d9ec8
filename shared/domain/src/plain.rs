//! Texts of others: names that users choose, and errors of other programs.

/// The text as it may be shown to people and written to a log: a name can neither steer a terminal, nor turn the text
/// around it, nor hide, nor begin a line. Breaks of lines and tabs become spaces; other controls, marks of direction and all that
/// has no width are left out.
///
/// Texts are cleaned where they come in, with the row or the answer that holds them. So what is shown, logged, sent or printed
/// as JSON is the same.
#[must_use]
pub fn plain(text: impl AsRef<str>) -> String {
    let shown = |c: char| match c {
        '\t'..='\r' | '\u{85}' | '\u{2028}' | '\u{2029}' => Some(' '),
        c if c.is_control() || is_invisible(c) => None,
        c => Some(c),
    };
    text.as_ref().chars().filter_map(shown).collect()
}

/// Unicode's `Default_Ignorable_Code_Point`, which holds all marks of direction; and the controls of annotations.
fn is_invisible(c: char) -> bool {
    matches!(c,
        '\u{ad}'
        | '\u{34f}'
        | '\u{61c}'
        | '\u{115f}'..='\u{1160}'
        | '\u{17b4}'..='\u{17b5}'
        | '\u{180b}'..='\u{180f}'
        | '\u{200b}'..='\u{200f}'
        | '\u{202a}'..='\u{202e}'
        | '\u{2060}'..='\u{206f}'
        | '\u{3164}'
        | '\u{fe00}'..='\u{fe0f}'
        | '\u{feff}'
        | '\u{ffa0}'
        | '\u{fff0}'..='\u{fffb}'
        | '\u{1bca0}'..='\u{1bca3}'
        | '\u{1d173}'..='\u{1d17a}'
        | '\u{e0000}'..='\u{e0fff}')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_steers_turns_or_hides_is_left_out() {
        for (text, expected) in [
            ("A\u{1b}[2Jria", "A[2Jria"),
            ("\u{9b}31mAria\u{7f}", "31mAria"),
            ("Aria\u{0}\u{8}\u{7}", "Aria"),
            ("A\u{202e}airA\u{2066}\u{200f}\u{61c}", "AairA"),
            ("A\u{200b}r\u{2060}i\u{ad}a\u{feff}\u{e0041}\u{3164}", "Aria"),
            ("Aria\r\n  - Bad (bad)", "Aria    - Bad (bad)"),
            ("A\tr\u{85}i\u{2028}a\u{2029}", "A r i a "),
            ("Ærøskøbing « Ça va » 龍 ❤ 🎲 שלום", "Ærøskøbing « Ça va » 龍 ❤ 🎲 שלום"),
        ] {
            assert_eq!(plain(text), expected);
        }
    }
}
