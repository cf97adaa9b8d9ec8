//! What the secrets say that the environment names.
//!
//! A value never reaches a log, an error or `Debug`.

use aws::SecretsManager;
use futures::future::join_all;

use crate::config::{Members, Secret, Source};

/// The secrets that the environment names.
pub(crate) struct Named(Vec<(Secret, String)>);

impl Named {
    /// Those of these that are named.
    pub(crate) fn of(environment: &Source, needed: &[Secret]) -> Self {
        Self(needed.iter().filter_map(|secret| Some((*secret, environment.secret_id(*secret)?))).collect())
    }

    /// Whether the environment names none of them.
    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Reads all at the same time. AWS is not asked where none is named.
    pub(crate) async fn read(&self, manager: &SecretsManager) -> Said {
        let read = self.0.iter().map(async |(secret, id)| {
            let text = manager.read(id).await?;
            secret.members(text.as_deref().map(String::as_str))
        });
        Said(join_all(read).await)
    }

    /// The settings of the environment, with what the secrets say.
    pub(crate) fn added_to(&self, environment: &Source, said: &Said) -> Source {
        let mut source = environment.clone();
        for ((secret, id), said) in self.0.iter().zip(&said.0) {
            source.add(*secret, id, said);
        }
        source
    }
}

/// What each of them says, or why that can't be known.
#[derive(PartialEq, Eq)]
pub(crate) struct Said(Vec<Result<Members, String>>);

impl Said {
    /// Whether all could be read.
    pub(crate) fn is_whole(&self) -> bool {
        self.0.iter().all(Result::is_ok)
    }

    /// What could not be read now says what it said before.
    pub(crate) fn or_before(self, named: &Named, before: &Self) -> Self {
        let said = named.0.iter().zip(self.0.into_iter().zip(&before.0)).map(|((_, id), (now, before))| {
            if let (Err(fault), Ok(_)) = (&now, before) {
                tracing::error!(secret = id, "the secret {fault}; what it said before is used meanwhile");
            }
            now.or_else(|fault| before.clone().map_err(|_| fault))
        });
        Self(said.collect())
    }
}

/// The settings of the environment, with what these secrets say that it names. For a command, which ends soon; what is wrong with
/// a secret is among the faults of the configuration that is read from the source.
pub async fn with_secrets(environment: &Source, needed: &[Secret], manager: &SecretsManager) -> Source {
    let named = Named::of(environment, needed);
    let said = named.read(manager).await;
    named.added_to(environment, &said)
}
