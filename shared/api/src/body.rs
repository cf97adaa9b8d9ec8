//! What is answered when all goes well. The names are part of the API.

use chrono::{DateTime, Utc};
use serde::Serialize;
use tokens_domain::authorization::{Membership, MembershipStatus};
use tokens_domain::health::{self, Checked, Detail, Finding, TwitchHealth};
use tokens_domain::{CampaignId, StreamerId};
use utoipa::ToSchema;
use uuid::Uuid;

/// What a streamer grants to a campaign, as of now.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub(crate) struct Authorization {
    /// The campaign.
    pub campaign_id: Uuid,
    /// The campaign's name.
    pub campaign_name: String,
    /// The streamer.
    pub streamer_id: Uuid,
    /// Whether the streamer has accepted the campaign's invitation.
    pub membership: MembershipState,
    /// False once the streamer is deactivated: then no authorization counts.
    pub streamer_active: bool,
    /// Whether polls may run on the channel now.
    pub authorized: bool,
    /// When the last authorization began; null if there was none.
    #[schema(required)]
    pub granted_at: Option<DateTime<Utc>>,
    /// When it ends or has ended; null if there was none.
    #[schema(required)]
    pub expires_at: Option<DateTime<Utc>>,
    /// How long polls may still run; 0 when not authorized.
    #[schema(minimum = 0)]
    pub remaining_seconds: i64,
    /// When the streamer's access token expires; null if unknown.
    #[schema(required)]
    pub token_expires_at: Option<DateTime<Utc>>,
}

/// Whether a streamer has accepted an invitation.
#[derive(Clone, Copy, Debug, Serialize, ToSchema)]
#[serde(rename_all = "UPPERCASE")]
pub(crate) enum MembershipState {
    /// Invited.
    Pending,
    /// Accepted.
    Active,
}

impl Authorization {
    pub fn of(membership: Membership, now: DateTime<Utc>) -> Self {
        let remaining = membership.remaining(now);
        Self {
            campaign_id: membership.campaign.0,
            campaign_name: membership.campaign_name,
            streamer_id: membership.streamer.id.0,
            membership: match membership.status {
                MembershipStatus::Pending => MembershipState::Pending,
                MembershipStatus::Active => MembershipState::Active,
            },
            streamer_active: membership.streamer_is_active,
            authorized: remaining.is_some(),
            granted_at: membership.authorization.map(|hours| hours.granted_at),
            expires_at: membership.authorization.map(|hours| hours.expires_at),
            remaining_seconds: remaining.map_or(0, |left| left.num_seconds()),
            token_expires_at: membership.token.expires_at,
        }
    }
}

/// What a streamer grants and has granted to campaigns: one for each campaign that has invited the streamer.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub(crate) struct Authorizations {
    /// The streamer.
    pub streamer_id: Uuid,
    /// By the campaigns' names.
    pub authorizations: Vec<Authorization>,
}

impl Authorizations {
    pub fn of(streamer: StreamerId, memberships: Vec<Membership>, now: DateTime<Utc>) -> Self {
        let authorizations = memberships.into_iter().map(|one| Authorization::of(one, now)).collect();
        Self { streamer_id: streamer.0, authorizations }
    }
}

/// Whether each channel that a campaign needs can be used now.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub(crate) struct HealthReport {
    /// The campaign.
    pub campaign_id: Uuid,
    /// Whether every channel can be used.
    pub healthy: bool,
    /// When the check began.
    pub checked_at: DateTime<Utc>,
    /// How long it took.
    #[schema(minimum = 0)]
    pub duration_ms: i64,
    /// What the check asked.
    pub services: Services,
    /// Each channel once: the game master's own first, then by login.
    pub streamers: Vec<StreamerReport>,
}

/// What a check asked.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub(crate) struct Services {
    /// Twitch's OAuth endpoints.
    pub twitch: Service,
    /// The database. If it is unavailable, the answer is a problem.
    pub database: Service,
}

/// One of the services that a check asks.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub(crate) struct Service {
    /// Whether it answered.
    pub status: ServiceStatus,
    /// How long it took altogether.
    #[schema(minimum = 0)]
    pub duration_ms: i64,
}

/// Whether a service answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub(crate) enum ServiceStatus {
    /// It did.
    Available,
    /// It was asked, and gave no usable answer.
    Unavailable,
    /// There was nothing to ask.
    NotAsked,
}

/// One channel, checked.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub(crate) struct StreamerReport {
    /// The streamer.
    pub streamer_id: Uuid,
    /// The channel's name in Twitch's URLs.
    pub login: String,
    /// The channel's name as viewers see it.
    pub display_name: String,
    /// Why the campaign needs it.
    pub role: Role,
    /// How it was found.
    pub status: StreamerStatus,
    /// What is wrong, if `status` is `issue`.
    #[schema(required)]
    pub issue: Option<Issue>,
    /// What to do about it, if anything.
    #[schema(required)]
    pub action: Option<&'static str>,
    /// Details, if there are any.
    #[schema(required)]
    pub detail: Option<String>,
    /// When the access token expires, if known.
    #[schema(required)]
    pub token_expires_at: Option<DateTime<Utc>>,
    /// When the authorization of this campaign ends or has ended; null without one: the game master's own
    /// channel needs none.
    #[schema(required)]
    pub authorization_expires_at: Option<DateTime<Utc>>,
}

/// Why a campaign needs a channel.
#[derive(Clone, Copy, Debug, Serialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Role {
    /// It is the game master's own.
    GameMaster,
    /// It is an active member's.
    Member,
}

/// How a channel was found.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub(crate) enum StreamerStatus {
    /// It can be used; Twitch says so.
    Ok,
    /// It can be used: its token was refreshed on the way.
    Refreshed,
    /// It can't be used.
    Issue,
    /// Not known in time.
    Unknown,
}

/// Why a channel can't be used in a session; the first reason that applies.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Issue {
    /// The streamer is deactivated.
    StreamerInactive,
    /// The streamer has never authorized this campaign.
    AuthorizationMissing,
    /// The authorization is over.
    AuthorizationExpired,
    /// No refresh token is stored.
    TokenMissing,
    /// Twitch calls the token invalid, and did not issue a new one.
    TokenInvalid,
}

impl HealthReport {
    pub fn of(campaign: CampaignId, report: health::HealthReport) -> Self {
        let healthy = report.is_healthy();
        let health::HealthReport { streamers, twitch, started_at, database_took, twitch_took } = report;
        let (database_ms, twitch_ms) = (database_took.num_milliseconds(), twitch_took.num_milliseconds());
        let twitch = match twitch {
            TwitchHealth::Available => ServiceStatus::Available,
            TwitchHealth::Unavailable => ServiceStatus::Unavailable,
            TwitchHealth::NotAsked => ServiceStatus::NotAsked,
        };
        Self {
            campaign_id: campaign.0,
            healthy,
            checked_at: started_at,
            duration_ms: (database_took + twitch_took).num_milliseconds(),
            services: Services {
                twitch: Service { status: twitch, duration_ms: twitch_ms },
                database: Service { status: ServiceStatus::Available, duration_ms: database_ms },
            },
            streamers: streamers.into_iter().map(StreamerReport::from).collect(),
        }
    }
}

impl From<Checked> for StreamerReport {
    fn from(Checked { participant, finding, detail, token_expires_at }: Checked) -> Self {
        let (status, issue, action) = match finding {
            Finding::Ok => (StreamerStatus::Ok, None, None),
            Finding::Refreshed => (StreamerStatus::Refreshed, None, None),
            Finding::Issue(issue) => (StreamerStatus::Issue, Some(issue.into()), Some(action(issue))),
            Finding::Unknown => (StreamerStatus::Unknown, None, Some("check again in a minute")),
        };
        Self {
            streamer_id: participant.streamer.id.0,
            login: participant.streamer.login,
            display_name: participant.streamer.display_name,
            role: if participant.is_game_master { Role::GameMaster } else { Role::Member },
            status,
            issue,
            action,
            detail: detail.map(text),
            token_expires_at,
            authorization_expires_at: participant.authorization.map(|hours| hours.expires_at),
        }
    }
}

/// What to do about it.
fn action(issue: health::Issue) -> &'static str {
    use health::Issue as Found;
    match issue {
        Found::StreamerInactive | Found::TokenMissing => "the streamer has to reconnect with Twitch",
        Found::AuthorizationMissing => "the streamer has to authorize this campaign",
        Found::AuthorizationExpired => "the streamer has to authorize this campaign again",
        Found::TokenInvalid => "the streamer has to reconnect with Twitch, unless a retry helps",
    }
}

/// What happened.
fn text(detail: Detail) -> String {
    let text = match detail {
        Detail::Failed(reason) => return reason,
        Detail::NotValidated(reason) => return format!("could not be validated: {reason}"),
        Detail::MissingScopes(scopes) => {
            return format!("the token lacks required scopes: {}", scopes.join(", "));
        }
        Detail::OurFault | Detail::UnknownKey => "a fault of this service's own; its log says which",
        Detail::Busy => "another run is refreshing the token, or its row is locked",
        Detail::Superseded => "another writer changed its tokens meanwhile, theirs stand",
        Detail::DatabaseFailed => "the database failed during the check",
        Detail::CredentialsRefused => "Twitch does not take our application's credentials",
        Detail::TwitchDown => "Twitch seems to be down",
        Detail::NoTime => "no time was left for it",
    };
    text.to_owned()
}

impl From<health::Issue> for Issue {
    fn from(issue: health::Issue) -> Self {
        use health::Issue as Found;
        match issue {
            Found::StreamerInactive => Self::StreamerInactive,
            Found::AuthorizationMissing => Self::AuthorizationMissing,
            Found::AuthorizationExpired => Self::AuthorizationExpired,
            Found::TokenMissing => Self::TokenMissing,
            Found::TokenInvalid => Self::TokenInvalid,
        }
    }
}
