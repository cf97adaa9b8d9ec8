//! The people who are notified of a streamer that has to reconnect.

use crate::authorization::CampaignId;

/// A notification has room for as many names.
pub const NAMED_CAMPAIGNS: usize = 3;

/// A person who is notified of a deactivation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Recipient {
    /// The person's name.
    pub name: String,
    /// As what.
    pub role: Role,
    /// On how many devices; 0 for a person who has none or wants no such notice.
    pub devices: u32,
    /// All campaigns of a game master that it concerns; empty for the streamer.
    pub campaigns: Vec<CampaignId>,
}

/// As what a person is notified.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Role {
    /// The streamer, who has to reconnect.
    Streamer,
    /// The owner of campaigns in which the streamer plays.
    GameMaster(Campaigns),
}

/// The campaigns of one game master, by their names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Campaigns {
    /// The first, which a notification leads to.
    pub first: CampaignId,
    /// The names of the first [`NAMED_CAMPAIGNS`].
    pub names: Vec<String>,
    /// How many there are.
    pub count: usize,
}

impl Campaigns {
    /// One campaign.
    #[must_use]
    pub fn one(campaign: CampaignId, name: impl Into<String>) -> Self {
        Self { first: campaign, names: vec![name.into()], count: 1 }
    }

    /// The names, each as `quote` has it, and how many more there are.
    #[must_use]
    pub fn named(&self, quote: impl Fn(&str) -> String) -> (Vec<String>, usize) {
        let names: Vec<_> = self.names.iter().take(NAMED_CAMPAIGNS).map(|name| quote(name)).collect();
        let more = self.count.saturating_sub(names.len());
        (names, more)
    }

    /// For an operator: `A, B, C and 2 more`.
    #[must_use]
    pub fn listed(&self) -> String {
        match self.named(str::to_owned) {
            (names, 0) => names.join(", "),
            (names, more) => format!("{} and {more} more", names.join(", ")),
        }
    }
}
