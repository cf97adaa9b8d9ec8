//! Every text that a person reads in a notification, in every language.

use super::{Campaigns, Locale, Notification, Recipient};

pub(super) struct Text {
    pub title: String,
    pub body: String,
    /// The button.
    pub action: &'static str,
}

/// Names come from outside; a notification shows a line or two.
const LONGEST_NAME: usize = 80;

fn short(name: &str) -> String {
    // Marks of direction could turn the rest of the sentence around.
    let turns =
        |c: char| matches!(c, '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}');
    let mut kept: String =
        name.chars().filter(|c| !c.is_control() && !turns(*c)).take(LONGEST_NAME + 1).collect();
    if kept.chars().count() > LONGEST_NAME {
        kept.pop();
        kept.push('…');
    }
    kept
}

/// `“A”`, `“A” and “B”`, `“A”, “B”, “C” and 4 other campaigns`.
fn listed(
    campaigns: &Campaigns,
    quote: impl Fn(&str) -> String,
    and: &str,
    other: &str,
    others: &str,
) -> String {
    let (mut parts, more) = campaigns.named(|name| quote(&short(name)));
    match more {
        0 => {}
        1 => parts.push(format!("1 {other}")),
        more => parts.push(format!("{more} {others}")),
    }
    match parts.split_last() {
        Some((last, rest)) if !rest.is_empty() => format!("{} {and} {last}", rest.join(", ")),
        _ => parts.concat(),
    }
}

pub(super) fn of(notification: &Notification, locale: Locale) -> Text {
    let streamer = short(&notification.streamer_name);
    match (&notification.recipient, locale) {
        (Recipient::Streamer, Locale::Fr) => Text {
            title: "Connexion Twitch perdue".to_owned(),
            body: format!(
                "Twitch refuse de renouveler l’accès à la chaîne {streamer}. Reconnecte-toi pour que les sondages \
                 puissent y reprendre."
            ),
            action: "Se reconnecter",
        },
        (Recipient::Streamer, Locale::En) => Text {
            title: "Twitch connection lost".to_owned(),
            body: format!(
                "Twitch refuses to renew the access to the channel {streamer}. Reconnect so that polls can run there \
                 again."
            ),
            action: "Reconnect",
        },
        (Recipient::GameMaster(campaigns), Locale::Fr) => Text {
            title: format!("{streamer} n’est plus connecté à Twitch"),
            body: format!(
                "Les sondages de {} ne passent plus sur la chaîne {streamer} tant que ce streamer ne s’est pas \
                 reconnecté.",
                listed(campaigns, |name| format!("« {name} »"), "et", "autre campagne", "autres campagnes")
            ),
            action: if campaigns.count == 1 { "Voir la campagne" } else { "Voir une campagne" },
        },
        (Recipient::GameMaster(campaigns), Locale::En) => Text {
            title: format!("{streamer} is no longer connected to Twitch"),
            body: format!(
                "Polls of {} no longer run on the channel {streamer} until the streamer reconnects.",
                listed(campaigns, |name| format!("“{name}”"), "and", "other campaign", "other campaigns")
            ),
            action: if campaigns.count == 1 { "Show the campaign" } else { "Show a campaign" },
        },
    }
}
