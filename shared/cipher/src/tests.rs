//! What is written can be read, with which key, and what is said of the rest.

use super::*;
use proptest::prelude::*;

const APP_KEY: &str = "0123456789abcdefghijklmnopqrstuv";
const HELLO_IN_ADONIS: &str = "IyOo05nnlAXWJ1r54mr8y9IHd1_JQesFENMtwqOSpIE.dmpaSXJtQkRCb0l6MzZzeQ.6Fg9yg-RjIWXYibsaH13BKZWHcoYlxc7_1kFcHsOwoQ";
const STREAMER: Uuid = Uuid::from_u128(0x0190_a7c2_0000_7000_8000_0000_0000_0001);
/// 32 bytes of `k`, of `o`, and 31 bytes.
const KEY: &str = "a2tra2tra2tra2tra2tra2tra2tra2tra2tra2tra2s=";
const OLD_KEY: &str = "b29vb29vb29vb29vb29vb29vb29vb29vb29vb29vb28=";
const SHORT_KEY: &str = "a2tra2tra2tra2tra2tra2tra2tra2tra2tra2traw==";

fn settings(app_key: Option<&str>, token_keys: Option<&str>, token_cipher: Option<&str>) -> CipherSettings {
    CipherSettings {
        app_key: app_key.map(|key| key.to_owned().into()),
        token_keys: token_keys.map(|keys| keys.to_owned().into()),
        token_cipher: token_cipher.map(ToOwned::to_owned),
    }
}

fn adonis() -> TokenCipher {
    TokenCipher::new(&settings(Some(APP_KEY), None, None)).unwrap()
}

fn aes_gcm(token_keys: &str) -> TokenCipher {
    TokenCipher::new(&settings(None, Some(token_keys), None)).unwrap()
}

fn decrypt(cipher: &TokenCipher, stored: &str) -> Result<String, DecryptError> {
    cipher
        .decrypt(STREAMER, Column::AccessToken, stored, DateTime::UNIX_EPOCH)
        .map(|plain| plain.as_str().to_owned())
}

fn encrypt(cipher: &TokenCipher, plain: &str) -> String {
    cipher.encrypt(STREAMER, Column::AccessToken, plain).unwrap()
}

fn unknown_key(key_id: &str) -> Result<String, DecryptError> {
    Err(DecryptError::UnknownKey { key_id: key_id.to_owned() })
}

fn text() -> impl Strategy<Value = String> {
    prop::collection::vec(any::<char>(), 1..80).prop_map(String::from_iter)
}

proptest! {
    #[test]
    fn every_text_comes_back_in_either_format(plain in text()) {
        for cipher in [adonis(), aes_gcm(&format!("k:{KEY}"))] {
            prop_assert_eq!(decrypt(&cipher, &encrypt(&cipher, &plain)), Ok(plain.clone()));
        }
    }

    #[test]
    fn no_text_makes_it_panic(stored in text()) {
        let cipher = aes_gcm(&format!("k:{KEY}"));
        for stored in [format!("v1.k.{stored}"), format!("v1.{stored}"), stored] {
            prop_assert!(decrypt(&adonis(), &stored).is_err());
            prop_assert!(decrypt(&cipher, &stored).is_err());
        }
    }

    /// Whatever single character of a text changes, the token does not come out.
    #[test]
    fn no_changed_text_is_read(place in any::<prop::sample::Index>(), to in "[A-Za-z0-9_.-]") {
        for cipher in [adonis(), aes_gcm(&format!("k:{KEY}"))] {
            let stored = encrypt(&cipher, "hello");
            let at = place.index(stored.len());
            let mut changed = stored.clone();
            changed.replace_range(at..=at, &to);
            prop_assume!(changed != stored);
            prop_assert!(decrypt(&cipher, &changed).is_err());
        }
    }
}

#[test]
fn the_same_token_is_never_written_the_same_way_twice() {
    for cipher in [adonis(), aes_gcm(&format!("k:{KEY}"))] {
        assert_ne!(encrypt(&cipher, "hello"), encrypt(&cipher, "hello"));
    }
}

#[test]
fn one_format_is_written_and_both_are_read() {
    let keys = format!("k:{KEY}");
    let [to_adonis, to_aes_gcm] = ["adonis", "aes-gcm"]
        .map(|name| TokenCipher::new(&settings(Some(APP_KEY), Some(&keys), Some(name))).unwrap());

    let (in_adonis, in_aes_gcm) = (encrypt(&to_adonis, "hello"), encrypt(&to_aes_gcm, "hello"));
    assert!(!in_adonis.starts_with("v1."));
    assert!(in_aes_gcm.starts_with("v1.k."));
    for cipher in [&to_adonis, &to_aes_gcm] {
        assert_eq!(decrypt(cipher, &in_adonis).as_deref(), Ok("hello"));
        assert_eq!(decrypt(cipher, &in_aes_gcm).as_deref(), Ok("hello"));
    }
}

#[test]
fn an_old_key_reads_and_the_first_writes() {
    let written_before = encrypt(&aes_gcm(&format!("old:{OLD_KEY}")), "hello");
    let rotated = aes_gcm(&format!("new:{KEY}, old:{OLD_KEY}"));

    assert_eq!(decrypt(&rotated, &written_before).as_deref(), Ok("hello"));
    assert!(encrypt(&rotated, "hello").starts_with("v1.new."));
    let without_old = aes_gcm(&format!("new:{KEY}"));
    assert_eq!(decrypt(&without_old, &written_before), unknown_key("old"));
    let another_under_its_name = aes_gcm(&format!("old:{KEY}"));
    assert_eq!(decrypt(&another_under_its_name, &written_before), Err(DecryptError::AuthenticationFailed));
}

#[test]
fn a_text_in_the_format_whose_key_is_missing_is_our_fault() {
    let in_aes_gcm = encrypt(&aes_gcm(&format!("k:{KEY}")), "hello");
    assert_eq!(decrypt(&adonis(), &in_aes_gcm), unknown_key("k"));
    assert_eq!(decrypt(&aes_gcm(&format!("k:{KEY}")), HELLO_IN_ADONIS), unknown_key("APP_KEY"));
}

#[test]
fn a_text_in_no_format_is_the_streamers_to_mend() {
    let keys = format!("k:{KEY}");
    let both = TokenCipher::new(&settings(Some(APP_KEY), Some(&keys), Some("adonis"))).unwrap();
    let [ciphertext, iv, mac] = HELLO_IN_ADONIS.split('.').collect::<Vec<_>>().try_into().unwrap();
    for stored in [
        "",
        ".",
        "..",
        "...",
        "invalid",
        "null",
        "v1",
        "v1.",
        "v1.k",
        "v1.k!.nonce.ciphertext",
        "v1..nonce.ciphertext",
        "v2.k.AAAAAAAAAAAAAAAA.AAAAAAAAAAAAAAAAAAAAAA",
        "a_plain_access_token_of_30_char",
        "three.dotted.words",
        "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxIn0.c2lnbmF0dXJl",
        &format!("{ciphertext}.{iv}"),
        &format!("{ciphertext}.{iv}=="),
        &format!("{ciphertext}=.{iv}.{mac}"),
        &format!("{ciphertext}.{iv}==.{mac}"),
        &format!("{ciphertext}.{iv}.{mac}="),
        &format!("{ciphertext}.{}.{mac}", &iv[..iv.len() - 2]),
        &format!("{ciphertext}.{iv}.{}", &mac[..mac.len() - 3]),
        &format!(" {HELLO_IN_ADONIS}"),
    ] {
        assert_eq!(decrypt(&both, stored), Err(DecryptError::UnknownFormat), "{stored}");
    }
}

#[test]
fn an_empty_text_is_not_a_token() {
    for cipher in [adonis(), aes_gcm(&format!("k:{KEY}"))] {
        assert_eq!(decrypt(&cipher, &encrypt(&cipher, "")), Err(DecryptError::UnknownFormat));
    }
}

fn faults(app_key: Option<&str>, token_keys: Option<&str>, token_cipher: Option<&str>) -> Vec<String> {
    TokenCipher::new(&settings(app_key, token_keys, token_cipher)).unwrap_err()
}

/// That there is one fault, and that it begins like this.
#[track_caller]
fn assert_fault(faults: &[String], beginning: &str) {
    let [fault] = faults else { panic!("one fault, not {faults:?}") };
    assert!(fault.starts_with(beginning), "{fault}");
}

#[test]
fn the_choice_of_what_is_written_is_checked() {
    let keys = &*format!("k:{KEY}");
    for (app_key, token_keys, token_cipher, beginning) in [
        (None, None, None, "APP_KEY and TOKEN_KEYS are missing"),
        (None, None, Some("rot13"), "TOKEN_CIPHER is neither `adonis` nor `aes-gcm`, and APP_KEY"),
        (None, None, Some("adonis"), "TOKEN_CIPHER is `adonis`, but APP_KEY is missing"),
        (None, None, Some("aes-gcm"), "TOKEN_CIPHER is `aes-gcm`, but TOKEN_KEYS is missing"),
        (None, Some(keys), Some("adonis"), "TOKEN_CIPHER is `adonis`, but APP_KEY is missing"),
        (Some(APP_KEY), None, Some("aes-gcm"), "TOKEN_CIPHER is `aes-gcm`, but TOKEN_KEYS is missing"),
        (Some(APP_KEY), Some(keys), None, "TOKEN_CIPHER is missing, and APP_KEY and TOKEN_KEYS are both set"),
        (Some(APP_KEY), Some(keys), Some(""), "TOKEN_CIPHER is neither `adonis` nor `aes-gcm`: set it"),
        (
            Some(APP_KEY),
            Some(keys),
            Some("AES-GCM"),
            "TOKEN_CIPHER is neither `adonis` nor `aes-gcm`: set it",
        ),
    ] {
        assert_fault(&faults(app_key, token_keys, token_cipher), beginning);
    }
}

#[test]
fn the_app_key_is_as_long_as_adonis_demands() {
    assert_fault(&faults(Some("fifteen-letters"), None, None), "APP_KEY is shorter than 16 characters");
    assert_fault(&faults(Some(""), None, None), "APP_KEY is shorter than 16 characters");
    assert!(TokenCipher::new(&settings(Some("sixteen-letters!"), None, None)).is_ok());
    // JavaScript counts UTF-16 code units, of which each of these is two.
    assert!(TokenCipher::new(&settings(Some(&"😀".repeat(8)), None, None)).is_ok());
}

#[test]
fn every_entry_of_the_key_ring_is_checked() {
    let long_id = "i".repeat(33);
    for (token_keys, beginning) in [
        (String::new(), "TOKEN_KEYS, entry 1 is not `id:base64`"),
        (KEY.to_owned(), "TOKEN_KEYS, entry 1 is not `id:base64`"),
        (format!("k:{KEY},"), "TOKEN_KEYS, entry 2 is not `id:base64`"),
        (format!(":{KEY}"), "TOKEN_KEYS, entry 1 has an id that is not 1 to 32"),
        (format!("{long_id}:{KEY}"), "TOKEN_KEYS, entry 1 has an id that is not 1 to 32"),
        (format!("a.b:{KEY}"), "TOKEN_KEYS, entry 1 has an id that is not 1 to 32"),
        (format!("é:{KEY}"), "TOKEN_KEYS, entry 1 has an id that is not 1 to 32"),
        ("k:".to_owned(), "TOKEN_KEYS, entry 1 has a key that is not 32 bytes in base64"),
        ("k:not base64".to_owned(), "TOKEN_KEYS, entry 1 has a key that is not 32 bytes in base64"),
        (format!("k:{SHORT_KEY}"), "TOKEN_KEYS, entry 1 has a key that is not 32 bytes in base64"),
        (format!("k:{KEY}{KEY}"), "TOKEN_KEYS, entry 1 has a key that is not 32 bytes in base64"),
        (format!("k:{KEY},k:{OLD_KEY}"), "TOKEN_KEYS, entry 2 repeats the id of entry 1"),
    ] {
        assert_fault(&faults(None, Some(&token_keys), None), beginning);
    }
}

#[test]
fn a_key_that_is_only_read_is_checked_too() {
    let keys = format!("k:{KEY}");
    assert_fault(&faults(Some(APP_KEY), Some("k:short"), Some("adonis")), "TOKEN_KEYS, entry 1 has a key");
    assert_fault(&faults(Some("short"), Some(&keys), Some("aes-gcm")), "APP_KEY is shorter");
}

#[test]
fn all_faults_come_at_once() {
    let found = faults(Some("short"), Some(&format!("k:short,k:{KEY},other")), Some("rot13"));
    assert_eq!(found.len(), 5, "{found:#?}");
}

#[test]
fn no_secret_is_shown() {
    let bad_keys = format!("k:{KEY}a,{OLD_KEY},{APP_KEY}:{KEY}");
    let bad = settings(Some("secret app key"), Some(&bad_keys), Some("secret by mistake"));
    let keys = format!("k:{KEY}");
    let good = settings(Some(APP_KEY), Some(&keys), Some("adonis"));
    let cipher = TokenCipher::new(&good).unwrap();
    let shown = format!("{bad:?} {good:?} {cipher:?} {:?}", TokenCipher::new(&bad).unwrap_err());

    for secret in [APP_KEY, KEY, OLD_KEY, "secret", "kkkk", "107, 107"] {
        assert!(!shown.contains(secret), "{secret} in {shown}");
    }
    assert!(shown.contains("redacted"));
}

#[test]
fn adonis_7_is_not_mistaken_for_nothing() {
    let settings = CipherSettings {
        app_key: Some(Zeroizing::new("0123456789abcdef".to_owned())),
        ..CipherSettings::default()
    };
    let cipher = TokenCipher::new(&settings).unwrap();
    let read = |text: &str| {
        cipher
            .decrypt(Uuid::nil(), Column::RefreshToken, text, DateTime::UNIX_EPOCH)
            .map(|plain| plain.to_string())
    };
    assert_eq!(read("main.v1:AAAA.BBBB.CCCC"), Err(DecryptError::Unsupported));
    assert_eq!(read("invalid"), Err(DecryptError::UnknownFormat));
}
