//! Every text that a person reads in a notification, in every language.

use tokens_domain::notification::{AlsoLost, Campaigns, Notification, Role};

use super::Locale;

pub(super) struct Text {
    pub title: String,
    pub body: String,
    /// The button.
    pub action: &'static str,
}

/// A notification shows a line or two.
const MAX_NAME: usize = 80;

/// What lists are made of. In pairs: of one, and of more.
struct Words {
    and: &'static str,
    other: [&'static str; 2],
    other_campaign: [&'static str; 2],
    reconnect_too: &'static str,
    also_lost: &'static str,
}

const FR: Words = Words {
    and: "et",
    other: ["autre", "autres"],
    other_campaign: ["autre campagne", "autres campagnes"],
    reconnect_too: "À reconnecter aussi, de ton côté :",
    also_lost: "Également déconnectés dans tes campagnes :",
};

const EN: Words = Words {
    and: "and",
    other: ["other", "others"],
    other_campaign: ["other campaign", "other campaigns"],
    reconnect_too: "Reconnect your own as well:",
    also_lost: "Also disconnected in your campaigns:",
};

impl Words {
    /// `A`, `A and B`, `A, B, C and 4 others`.
    fn listed(&self, mut names: Vec<String>, more: usize, [other, others]: [&str; 2]) -> String {
        match more {
            0 => {}
            1 => names.push(format!("1 {other}")),
            more => names.push(format!("{more} {others}")),
        }
        match names.split_last() {
            Some((last, rest)) if !rest.is_empty() => format!("{} {} {last}", rest.join(", "), self.and),
            _ => names.concat(),
        }
    }

    fn campaigns(&self, campaigns: &Campaigns, quote: impl Fn(&str) -> String) -> String {
        let (names, more) = campaigns.named(|name| quote(&short(name)));
        self.listed(names, more, self.other_campaign)
    }

    /// The sentences about the other lost streamers; the first `named` are named.
    fn also(&self, lost: &AlsoLost, named: usize) -> String {
        let own = named.min(lost.own.len());
        self.sentence(self.reconnect_too, &lost.own, own)
            + &self.sentence(self.also_lost, &lost.others, named - own)
    }

    fn sentence(&self, what: &str, lost: &[String], shown: usize) -> String {
        if lost.is_empty() {
            return String::new();
        }
        let names = lost.iter().take(shown).map(|name| short(name)).collect();
        format!(" {what} {}.", self.listed(names, lost.len() - shown, self.other))
    }
}

fn short(name: &str) -> String {
    let mut kept: String = name.chars().take(MAX_NAME + 1).collect();
    if kept.chars().count() > MAX_NAME {
        kept.pop();
        kept.push('…');
    }
    kept
}

/// Of those who are also lost it names the first `named`.
pub(super) fn of(notification: &Notification, named: usize, locale: Locale) -> Text {
    let streamer = short(&notification.streamer_name);
    let also = &notification.also_lost;
    let words = match locale {
        Locale::Fr => &FR,
        Locale::En => &EN,
    };
    let lost = words.listed(vec![streamer.clone()], also.others.len(), words.other);
    let is_alone = also.others.is_empty();
    let text = match (&notification.role, locale) {
        (Role::Streamer, Locale::Fr) => Text {
            title: "Connexion Twitch perdue".to_owned(),
            body: format!(
                "Twitch refuse de renouveler l’accès à la chaîne {streamer}. Reconnecte-toi pour que les sondages \
                 puissent y reprendre."
            ),
            action: "Se reconnecter",
        },
        (Role::Streamer, Locale::En) => Text {
            title: "Twitch connection lost".to_owned(),
            body: format!(
                "Twitch refuses to renew the access to the channel {streamer}. Reconnect so that polls can run there \
                 again."
            ),
            action: "Reconnect",
        },
        (Role::GameMaster(campaigns), Locale::Fr) => Text {
            title: if is_alone {
                format!("{lost} n’est plus connecté à Twitch")
            } else {
                format!("{lost} ne sont plus connectés à Twitch")
            },
            body: format!(
                "Les sondages de {} ne passent plus sur la chaîne {streamer} tant que ce streamer ne s’est pas \
                 reconnecté.",
                words.campaigns(campaigns, |name| format!("« {name} »"))
            ),
            action: if campaigns.count == 1 { "Voir la campagne" } else { "Voir une campagne" },
        },
        (Role::GameMaster(campaigns), Locale::En) => Text {
            title: if is_alone {
                format!("{lost} is no longer connected to Twitch")
            } else {
                format!("{lost} are no longer connected to Twitch")
            },
            body: format!(
                "Polls of {} no longer run on the channel {streamer} until the streamer reconnects.",
                words.campaigns(campaigns, |name| format!("“{name}”"))
            ),
            action: if campaigns.count == 1 { "Show the campaign" } else { "Show a campaign" },
        },
    };
    Text { body: text.body + &words.also(also, named), ..text }
}
