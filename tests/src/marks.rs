//! Marks: secrets that a test gives to the program, and the search for them where they must not be.

use std::collections::BTreeMap;
use std::fmt::Write as _;

/// Shorter ones would be found by chance.
const SHORTEST: usize = 12;

/// The secrets of one run, with the texts in which each can stand.
#[derive(Default)]
pub struct Marks(BTreeMap<(&'static str, Vec<u8>), Vec<Form>>);

/// How a text shows a secret, and the text.
type Form = (&'static str, String);

impl Marks {
    /// Remembers a secret. `what` names it where it is found.
    ///
    /// # Panics
    ///
    /// If it is so short that it could be found by chance.
    pub fn add(&mut self, what: &'static str, secret: impl AsRef<[u8]>) {
        assert!(secret.as_ref().len() >= SHORTEST, "{what} is too short for a mark");
        let secret = secret.as_ref().to_vec();
        self.0.entry((what, secret)).or_insert_with_key(|(_, secret)| forms(secret));
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// What is found in this text of the secrets, as they are or encoded: each by its name and form, with the line.
    pub fn found_in(&self, text: &str) -> Vec<String> {
        let found = self.0.iter().flat_map(|((what, _), forms)| {
            let found = forms.iter().filter(|(_, shown)| text.contains(shown.as_str()));
            found.map(move |(form, shown)| {
                let line = text.lines().find(|line| line.contains(shown.as_str())).unwrap_or_default();
                format!("{what}, {form}: {}", line.replace(shown.as_str(), "<here>"))
            })
        });
        found.collect()
    }
}

/// The texts in which a secret can stand: plain, escaped as in a URL or a Rust string, in hexadecimal or decimal bytes, in
/// base64 at any of the three places where it can begin there.
fn forms(secret: &[u8]) -> Vec<Form> {
    let mut forms = vec![
        ("in lower hexadecimal", hex(secret, |text, byte| write!(text, "{byte:02x}"))),
        ("in upper hexadecimal", hex(secret, |text, byte| write!(text, "{byte:02X}"))),
        ("as bytes", format!("{secret:?}").trim_matches(['[', ']']).to_owned()),
    ];
    for skipped in 0..3 {
        for (name, alphabet) in [("in base64", *b"+/"), ("in base64url", *b"-_")] {
            forms.push((name, base64_within(secret, skipped, alphabet)));
        }
    }
    if let Ok(text) = std::str::from_utf8(secret) {
        let kept = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.~".contains(&byte);
        let escaped = hex(secret, |text, byte| {
            if kept(byte) { write!(text, "{}", char::from(byte)) } else { write!(text, "%{byte:02X}") }
        });
        forms.extend([
            ("plain", text.to_owned()),
            ("URL-encoded", escaped),
            ("escaped", text.escape_debug().to_string()),
        ]);
    }
    forms
}

fn hex(secret: &[u8], one: impl Fn(&mut String, u8) -> std::fmt::Result) -> String {
    secret.iter().fold(String::new(), |mut text, byte| {
        // It can't fail: a string takes everything.
        let _ = one(&mut text, *byte);
        text
    })
}

/// The middle of the secret's base64 where `skipped` bytes come before it: what doesn't depend on its neighbours.
fn base64_within(secret: &[u8], skipped: usize, special: [u8; 2]) -> String {
    let mut alphabet: Vec<u8> = (b'A'..=b'Z').chain(b'a'..=b'z').chain(b'0'..=b'9').collect();
    alphabet.extend(special);
    // The first byte that begins a group of three is the first one whose characters are its own.
    let whole = &secret[(3 - skipped) % 3..];
    let groups = whole.as_chunks::<3>().0.iter().flat_map(|[a, b, c]| {
        let bits = u32::from(*a) << 16 | u32::from(*b) << 8 | u32::from(*c);
        [18, 12, 6, 0].map(|shift| char::from(alphabet[(bits >> shift & 63) as usize]))
    });
    groups.collect()
}
