//! Secrets Manager's `GetSecretValue`, in JSON 1.1.

use axum::body::Bytes;
use axum::http::StatusCode;
use axum::response::Response;
use serde::Deserialize;
use serde_json::json;
use uuid::Uuid;

use super::answer::{Refusal, json_1_1};
use super::{ACCOUNT, REGION, Service, Simulation};

/// The operation's name.
pub(super) const TARGET: &str = "secretsmanager.GetSecretValue";

/// The stages of a secret's newest version and of the one before.
const STAGES: [&str; 2] = ["AWSCURRENT", "AWSPREVIOUS"];

/// A secret's versions, the newest first.
#[derive(Clone, Debug, Default)]
pub(super) struct Versions(Vec<Version>);

#[derive(Clone, Debug)]
struct Version {
    id: Uuid,
    text: String,
}

impl Versions {
    /// A new version, which is the current one from now on. The one before is kept, those before that are not.
    pub(super) fn put(&mut self, text: String) {
        self.0.insert(0, Version { id: Uuid::new_v4(), text });
        self.0.truncate(STAGES.len());
    }
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase", deny_unknown_fields)]
struct GetSecretValue {
    secret_id: String,
    version_id: Option<Uuid>,
    version_stage: Option<String>,
}

pub(super) fn get(simulation: &Simulation, body: &Bytes) -> Result<Response, Refusal> {
    let refused =
        |code, message: &str| Refusal::new(Service::Secrets, StatusCode::BAD_REQUEST, code, message);
    let GetSecretValue { secret_id, version_id, version_stage } = serde_json::from_slice(body)
        .map_err(|error| refused("SerializationException", &error.to_string()))?;
    let held = simulation.held.borrow();
    let (name, Versions(versions)) =
        held.secrets.iter().find(|(name, _)| **name == secret_id || arn(name) == secret_id).ok_or_else(
            || refused("ResourceNotFoundException", "Secrets Manager can't find the specified secret."),
        )?;
    let stage = version_stage.or_else(|| version_id.is_none().then(|| STAGES[0].to_owned()));
    let fits = |(version, name): &(&Version, &str)| {
        version_id.is_none_or(|id| id == version.id) && stage.as_ref().is_none_or(|stage| stage == name)
    };
    let (version, stage) = versions.iter().zip(STAGES).find(fits).ok_or_else(|| {
        refused(
            "ResourceNotFoundException",
            "Secrets Manager can't find the specified secret value for the staging label or version.",
        )
    })?;
    let body = json!({
        "ARN": arn(name),
        "CreatedDate": simulation.clock.now().timestamp(),
        "Name": name,
        "SecretString": version.text,
        "VersionId": version.id,
        "VersionStages": [stage],
    });
    Ok(json_1_1(StatusCode::OK, &body))
}

/// The real ones end in six characters that nobody chooses.
pub(super) fn arn(name: &str) -> String {
    format!("arn:aws:secretsmanager:{REGION}:{ACCOUNT}:secret:{name}-l0CaL5")
}
