//! What Twitch itself would remember: who connected the application, and which tokens are alive. A pure state
//! machine: no HTTP, and the time is passed in.

use std::{
    collections::{HashMap, VecDeque},
    sync::Arc,
    time::Duration,
};

use chrono::{DateTime, Utc};
use tokens_domain::{AccessToken, RefreshToken, TokenPair};

use super::{RefreshTokens, UnknownStreamer};
use crate::clock::later;

/// Twitch keeps this many access tokens alive for one refresh token; the next one pushes the oldest out.
pub(super) const ACCESS_TOKENS_PER_GRANT: usize = 50;

const ACCESS_TOKEN_LENGTH: usize = 30;
const REFRESH_TOKEN_LENGTH: usize = 50;

const ALPHANUMERICS: &[u8] = b"abcdefghijklmnopqrstuvwxyz0123456789";
/// Refresh tokens may hold characters that a client must escape in a form.
const REFRESH_TOKEN_ALPHABET: &[u8] = b"abcdefghijklmnopqrstuvwxyz0123456789%/";

/// What one streamer's tokens were used for since the simulation started.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Activity {
    /// Requests to the token endpoint that carried a refresh token of this streamer, whatever came of them.
    pub refresh_requests: u64,
    /// Refreshes that were granted, even if their answer was then lost.
    pub refreshes: u64,
    /// Requests to the validation endpoint that carried an access token of this streamer.
    pub validations: u64,
}

/// Why a refresh is refused. Twitch answers both in the same way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Refused {
    /// The refresh token is unknown, or its grant is over.
    Invalid,
    /// A one-time refresh token came a second time, which ended its grant.
    Reused,
}

/// What validation tells about a live access token.
pub(super) struct Validation<'a> {
    pub(super) login: &'a str,
    pub(super) user_id: &'a str,
    pub(super) scopes: &'a [String],
    pub(super) expires_in_seconds: i64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct AccountId(usize);

#[derive(Clone, Copy)]
struct GrantId(usize);

pub(super) struct Account {
    user_id: String,
    login: String,
    pub(super) activity: Activity,
    /// One for each time the streamer connected the application, the newest last.
    grants: Vec<GrantId>,
}

/// One connection of one streamer: a refresh token and the access tokens made with it.
struct Grant {
    account: AccountId,
    scopes: Vec<String>,
    /// The newest refresh token.
    refresh_token: Arc<str>,
    /// The access tokens that may still be alive, the newest last.
    access_tokens: VecDeque<Arc<str>>,
    over: bool,
}

struct Issued {
    grant: GrantId,
    expires_at: DateTime<Utc>,
}

/// All accounts, with an index for each way to look one up. There is no `Debug`, since it holds plain tokens.
pub(super) struct Accounts {
    refresh_tokens_are: RefreshTokens,
    streamers: Vec<Account>,
    grants: Vec<Grant>,
    by_login: HashMap<String, AccountId>,
    by_access_token: HashMap<Arc<str>, Issued>,
    /// Used and dead refresh tokens stay in, so that a reuse is noticed and a request finds its streamer.
    by_refresh_token: HashMap<Arc<str>, GrantId>,
    /// What the application itself was given: access tokens of no streamer, with the time at which they expire.
    of_application: HashMap<Arc<str>, DateTime<Utc>>,
}

impl Accounts {
    pub(super) fn new(refresh_tokens_are: RefreshTokens) -> Self {
        Self {
            refresh_tokens_are,
            streamers: Vec::new(),
            grants: Vec::new(),
            by_login: HashMap::new(),
            by_access_token: HashMap::new(),
            by_refresh_token: HashMap::new(),
            of_application: HashMap::new(),
        }
    }

    /// The streamer connects the application: a new grant. Grants from earlier connections live on.
    pub(super) fn connect(
        &mut self,
        user_id: &str,
        login: &str,
        scopes: &[String],
        lifetime: Duration,
        now: DateTime<Utc>,
    ) -> TokenPair {
        let account = self.by_login.get(login).copied().unwrap_or_else(|| {
            let id = AccountId(self.streamers.len());
            self.streamers.push(Account {
                user_id: user_id.to_owned(),
                login: login.to_owned(),
                activity: Activity::default(),
                grants: Vec::new(),
            });
            self.by_login.insert(login.to_owned(), id);
            id
        });
        let id = GrantId(self.grants.len());
        let refresh_token = self.issue_refresh_token(id);
        self.grants.push(Grant {
            account,
            scopes: scopes.to_vec(),
            refresh_token: Arc::clone(&refresh_token),
            access_tokens: VecDeque::new(),
            over: false,
        });
        self.streamers[account.0].grants.push(id);
        let access_token = self.issue_access_token(id, lifetime, now);
        pair(&access_token, &refresh_token)
    }

    /// The streamer disconnects the application: every token of every connection is dead.
    pub(super) fn disconnect(&mut self, account: AccountId) {
        for grant in &self.streamers[account.0].grants {
            self.grants[grant.0].over = true;
        }
    }

    /// A refresh as Twitch does it, and the scopes of the grant. The access tokens from before live until they expire.
    pub(super) fn refresh(
        &mut self,
        refresh_token: &str,
        lifetime: Duration,
        now: DateTime<Utc>,
    ) -> Result<(TokenPair, Vec<String>), Refused> {
        let id = *self.by_refresh_token.get(refresh_token).ok_or(Refused::Invalid)?;
        let grant = &mut self.grants[id.0];
        if grant.over {
            return Err(Refused::Invalid);
        }
        if self.refresh_tokens_are == RefreshTokens::OneTime && *grant.refresh_token != *refresh_token {
            grant.over = true;
            return Err(Refused::Reused);
        }
        if self.refresh_tokens_are != RefreshTokens::Kept {
            let rotated = self.issue_refresh_token(id);
            self.grants[id.0].refresh_token = rotated;
        }
        let access_token = self.issue_access_token(id, lifetime, now);
        let grant = &self.grants[id.0];
        self.streamers[grant.account.0].activity.refreshes += 1;
        Ok((pair(&access_token, &grant.refresh_token), grant.scopes.clone()))
    }

    pub(super) fn validate(&self, access_token: &str, now: DateTime<Utc>) -> Option<Validation<'_>> {
        let issued = self.live(access_token, now)?;
        let grant = &self.grants[issued.grant.0];
        let account = &self.streamers[grant.account.0];
        Some(Validation {
            login: &account.login,
            user_id: &account.user_id,
            scopes: &grant.scopes,
            expires_in_seconds: (issued.expires_at - now).num_seconds(),
        })
    }

    /// An access token of the application's own, without a refresh token and without a streamer.
    pub(super) fn issue_to_application(&mut self, lifetime: Duration, now: DateTime<Utc>) -> AccessToken {
        let token: Arc<str> = random_text(ALPHANUMERICS, ACCESS_TOKEN_LENGTH).into();
        self.of_application.insert(Arc::clone(&token), later(now, lifetime));
        AccessToken::new(&*token)
    }

    /// How long such a token still lives, in seconds; `None`: it doesn't.
    pub(super) fn validate_of_application(&self, access_token: &str, now: DateTime<Utc>) -> Option<i64> {
        let expires_at = self.of_application.get(access_token).filter(|expires_at| **expires_at > now)?;
        Some((*expires_at - now).num_seconds())
    }

    /// The application's own tokens that are alive.
    pub(super) fn live_of_application(&self, now: DateTime<Utc>) -> usize {
        self.of_application.values().filter(|expires_at| **expires_at > now).count()
    }

    /// Ends one access token; its refresh token lives on. False if the token wasn't alive.
    pub(super) fn revoke(&mut self, access_token: &str, now: DateTime<Utc>) -> bool {
        if self.validate_of_application(access_token, now).is_some() {
            return self.of_application.remove(access_token).is_some();
        }
        let Some(grant) = self.live(access_token, now).map(|issued| issued.grant) else {
            return false;
        };
        self.by_access_token.remove(access_token);
        self.grants[grant.0].access_tokens.retain(|issued| **issued != *access_token);
        true
    }

    pub(super) fn access_token_is_live(&self, access_token: &str, now: DateTime<Utc>) -> bool {
        self.live(access_token, now).is_some()
    }

    /// The newest pair of a streamer who is connected, expired or not.
    pub(super) fn current_tokens(&self, account: AccountId) -> Option<TokenPair> {
        let newest = self.streamers[account.0].grants.last()?;
        let grant = &self.grants[newest.0];
        (!grant.over).then(|| grant.access_tokens.back().map(|access| pair(access, &grant.refresh_token)))?
    }

    /// Every token that was issued, but for access tokens that are long over.
    pub(super) fn issued(&self) -> impl Iterator<Item = &str> {
        let streamers = self.by_access_token.keys().chain(self.by_refresh_token.keys());
        streamers.chain(self.of_application.keys()).map(|token| &**token)
    }

    pub(super) fn find(&self, login: &str) -> Result<AccountId, UnknownStreamer> {
        self.by_login.get(login).copied().ok_or_else(|| UnknownStreamer { login: login.to_owned() })
    }

    /// The id of the Twitch user with this login, if there is one.
    pub(super) fn user_id(&self, login: &str) -> Option<&str> {
        Some(&self.streamers[self.by_login.get(login)?.0].user_id)
    }

    pub(super) fn owner_of_refresh_token(&self, refresh_token: &str) -> Option<AccountId> {
        self.by_refresh_token.get(refresh_token).map(|grant| self.grants[grant.0].account)
    }

    pub(super) fn owner_of_access_token(&self, access_token: &str) -> Option<AccountId> {
        self.by_access_token.get(access_token).map(|issued| self.grants[issued.grant.0].account)
    }

    pub(super) fn get(&self, account: AccountId) -> &Account {
        &self.streamers[account.0]
    }

    pub(super) fn get_mut(&mut self, account: AccountId) -> &mut Account {
        &mut self.streamers[account.0]
    }

    fn live(&self, access_token: &str, now: DateTime<Utc>) -> Option<&Issued> {
        self.by_access_token
            .get(access_token)
            .filter(|issued| issued.expires_at > now && !self.grants[issued.grant.0].over)
    }

    fn issue_refresh_token(&mut self, grant: GrantId) -> Arc<str> {
        let token: Arc<str> = random_text(REFRESH_TOKEN_ALPHABET, REFRESH_TOKEN_LENGTH).into();
        self.by_refresh_token.insert(Arc::clone(&token), grant);
        token
    }

    fn issue_access_token(&mut self, id: GrantId, lifetime: Duration, now: DateTime<Utc>) -> Arc<str> {
        let grant = &mut self.grants[id.0];
        // Expired ones go too, so that a long run holds only what can still be alive.
        while let Some(oldest) = grant.access_tokens.front()
            && (grant.access_tokens.len() >= ACCESS_TOKENS_PER_GRANT
                || self.by_access_token.get(oldest).is_none_or(|issued| issued.expires_at <= now))
        {
            self.by_access_token.remove(oldest);
            grant.access_tokens.pop_front();
        }
        let token: Arc<str> = random_text(ALPHANUMERICS, ACCESS_TOKEN_LENGTH).into();
        grant.access_tokens.push_back(Arc::clone(&token));
        self.by_access_token
            .insert(Arc::clone(&token), Issued { grant: id, expires_at: later(now, lifetime) });
        token
    }
}

fn pair(access_token: &str, refresh_token: &str) -> TokenPair {
    TokenPair { access: AccessToken::new(access_token), refresh: RefreshToken::new(refresh_token) }
}

/// A client id or secret as Twitch's console shows them.
pub(super) fn random_credential() -> String {
    random_text(ALPHANUMERICS, 30)
}

/// What a client asks with whether its code is confirmed.
pub(super) fn random_device_code() -> String {
    random_text(ALPHANUMERICS, 40)
}

/// What a streamer types.
pub(super) fn random_user_code() -> String {
    random_text(b"ABCDEFGHJKLMNPQRSTUVWXYZ", 8)
}

/// The id of a Twitch user.
pub(super) fn random_user_id() -> String {
    random_text(b"123456789", 9)
}

/// `length` characters drawn evenly from `alphabet`, which has at most 256 ASCII characters.
fn random_text(alphabet: &[u8], length: usize) -> String {
    // Bytes beyond the last whole multiple of the alphabet would favour its first characters.
    let even = 256 - 256 % alphabet.len();
    let mut text = String::with_capacity(length);
    let mut bytes = [0; 64];
    loop {
        getrandom::fill(&mut bytes).expect("the operating system has randomness");
        for byte in bytes.map(usize::from).into_iter().filter(|byte| *byte < even) {
            text.push(char::from(alphabet[byte % alphabet.len()]));
            if text.len() == length {
                return text;
            }
        }
    }
}
