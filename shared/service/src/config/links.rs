//! Where a notification leads: a path of the frontend, or an absolute URL.

use crate::presentation::{CAMPAIGN_ID, MAX_LINK, Presentation};
use url::Url;
use uuid::Uuid;

use super::{Reader, has_loopback_host};

impl Reader<'_> {
    pub(super) fn presentation(&mut self) -> Presentation {
        let default = Presentation::default();
        Presentation {
            locale: self.locale(),
            streamer_url: self.link("NOTIFICATION_STREAMER_URL", default.streamer_url, None),
            campaign_url: self.link("NOTIFICATION_CAMPAIGN_URL", default.campaign_url, Some(CAMPAIGN_ID)),
        }
    }

    fn link(&mut self, name: &str, default: String, id: Option<&str>) -> String {
        let Some(link) = self.source.get(name) else { return default };
        self.lends_nothing(name);
        if let Err(fault) = check(link, id) {
            self.fault(format!("{name} {fault}"));
        }
        link.to_owned()
    }
}

impl Reader<'_> {
    /// What others read may hold nothing of the environment because of a file that happened to be there.
    pub(super) fn lends_nothing(&mut self, name: &str) {
        if self.source.borrows(name) {
            self.fault(format!(
                "{name} in the `.env` of this directory uses a variable of the environment, which may be a secret, and is sent \
                 to others: write it out; or, if the file is yours, name it with --env-file"
            ));
        }
    }
}

/// `id` may stand in the link for the id of a campaign. What is wrong does not show the link, which may hold a password.
fn check(link: &str, id: Option<&str>) -> Result<(), String> {
    /// Against this a path is resolved, as a service worker does against its own origin.
    const FRONTEND: &str = "frontend.invalid";
    // A URL's parser would drop some of them, and JSON make others longer.
    if link.chars().any(|c| c.is_whitespace() || c.is_control() || matches!(c, '"' | '\\')) {
        return Err("holds a space, a control character, a quotation mark or a backslash".to_owned());
    }
    let filled = match id {
        Some(id) => link.replace(id, &Uuid::nil().to_string()),
        None => link.to_owned(),
    };
    if filled.contains(['{', '}']) {
        return Err(match id {
            Some(id) => format!("holds a brace that is not of {id}"),
            None => format!("holds a brace: {CAMPAIGN_ID} is for NOTIFICATION_CAMPAIGN_URL alone"),
        });
    }
    if filled.len() > MAX_LINK {
        return Err(format!("is longer than {MAX_LINK} bytes"));
    }
    let url = if filled.starts_with('/') {
        let base = Url::parse(&format!("https://{FRONTEND}"));
        base.and_then(|base| base.join(&filled)).ok().filter(|url| url.host_str() == Some(FRONTEND))
    } else {
        let is_allowed =
            |url: &Url| url.scheme() == "https" || url.scheme() == "http" && has_loopback_host(url);
        Url::parse(&filled).ok().filter(|url| filled.contains("://") && is_allowed(url))
    };
    let url = url.ok_or(
        "is neither a path of the frontend, such as /settings, nor an absolute URL: https, or http on loopback",
    )?;
    if !url.username().is_empty() || url.password().is_some() {
        return Err("holds a user or a password".to_owned());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::super::Source;
    use super::*;

    fn read(settings: &[(&str, &str)]) -> (Presentation, Vec<String>) {
        let source: Source = settings.iter().copied().collect();
        let mut reader = Reader::new(&source);
        (reader.presentation(), reader.faults)
    }

    #[test]
    fn links_are_paths_or_absolute_and_have_defaults() {
        let (by_default, faults) =
            read(&[("NOTIFICATION_STREAMER_URL", ""), ("NOTIFICATION_CAMPAIGN_URL", "")]);
        assert_eq!((by_default, faults), (Presentation::default(), vec![]));
        for (streamer, campaign) in [
            ("/", "/dashboard"),
            ("/settings?tab=twitch#reconnect", "/mj/campaigns/{campaign_id}/streamers"),
            ("https://polls.example.com/auth/twitch/redirect", "https://polls.example.com/#/c/{campaign_id}"),
            ("http://localhost:5173/settings", "https://{campaign_id}.polls.example.com/?id={campaign_id}"),
            ("/r\u{e9}glages", "HTTPS://polls.example.com"),
        ] {
            let set = [("NOTIFICATION_STREAMER_URL", streamer), ("NOTIFICATION_CAMPAIGN_URL", campaign)];
            let (presentation, faults) = read(&set);
            assert_eq!(faults, [""; 0]);
            assert_eq!(
                (presentation.streamer_url.as_str(), presentation.campaign_url.as_str()),
                (streamer, campaign)
            );
        }
    }

    #[test]
    fn each_link_that_leads_nowhere_is_named_and_not_shown() {
        let long = format!("/{}", "x".repeat(MAX_LINK));
        let long_when_filled = format!("/{}", CAMPAIGN_ID.repeat(14));
        for (streamer, campaign, says) in [
            ("settings", "mj/{campaign_id}", "neither a path"),
            ("//evil.example.com/s3cret", "//{campaign_id}", "neither a path"),
            ("https:s3cret", "https:/{campaign_id}", "neither a path"),
            ("javascript:alert(1)", "data:text/html,{campaign_id}", "neither a path"),
            ("http://polls.example.com/s3cret", "http://polls.example.com/{campaign_id}", "neither a path"),
            ("https://", "ftp://polls.example.com/{campaign_id}", "neither a path"),
            ("/\\evil.example.com", "/mj\\{campaign_id}", "backslash"),
            ("/\t/evil.example.com", "/mj/ {campaign_id}", "a space, a control character"),
            ("/set\"tings", "/\u{a0}{campaign_id}", "a quotation mark"),
            ("/settings/{campaign_id}", "/mj/campaigns/{campaignId}", "holds a brace"),
            ("/settings/{", "/mj/{{campaign_id}}", "holds a brace"),
            (
                "https://us:s3cret@polls.example.com/",
                "https://us@polls.example.com/{campaign_id}",
                "a user or a password",
            ),
            (&long, &long_when_filled, "longer than 500 bytes"),
        ] {
            let set = [("NOTIFICATION_STREAMER_URL", streamer), ("NOTIFICATION_CAMPAIGN_URL", campaign)];
            let (_, faults) = read(&set);
            assert_eq!(faults.len(), 2, "{set:?}: {faults:?}");
            for (fault, (name, _)) in faults.iter().zip(set) {
                assert!(fault.starts_with(&format!("{name} ")) && fault.contains(says), "{fault}");
                assert!(!fault.contains("s3cret"), "{fault}");
            }
        }
    }
}
