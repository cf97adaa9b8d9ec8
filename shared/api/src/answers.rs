//! What each operation can answer, with examples, for the API's description.

use std::collections::BTreeMap;

use axum::http::StatusCode;
use chrono::{DateTime, TimeDelta, Utc};
use serde::Serialize;
use tokens_domain::authorization::{self, Membership, MembershipStatus, Participant, Unknown};
use tokens_domain::health::{self, Checked, Finding, TwitchHealth};
use tokens_domain::{CampaignId, Streamer, StreamerId, TokenState};
use utoipa::IntoResponses;
use utoipa::openapi::example::ExampleBuilder;
use utoipa::openapi::header::HeaderBuilder;
use utoipa::openapi::schema::{ObjectBuilder, Type};
use utoipa::openapi::{ContentBuilder, Ref, RefOr, Response, ResponseBuilder};
use uuid::{Uuid, uuid};

use crate::body::{Authorization, Authorizations, HealthReport};
use crate::problem::{PROBLEM_JSON, Problem, REQUEST_ID};

/// The request's id in the examples.
const EXAMPLE_ID: &str = "JKJaXmPLvHcESHA=";

/// What any request can meet, whatever it asks for.
const ANY: [Problem; 12] = [
    Problem::UnexpectedBody,
    Problem::BodyTooLarge,
    Problem::CallerUnidentified,
    Problem::CallerForeign,
    Problem::KeyMissing,
    Problem::RightMissing,
    Problem::CampaignForbidden,
    Problem::UnknownHost,
    Problem::TooManyRequests,
    Problem::TimedOut,
    Problem::DatabaseUnavailable,
    Problem::Internal,
];

type Responses = BTreeMap<String, RefOr<Response>>;

pub(crate) struct GrantAnswers;

impl IntoResponses for GrantAnswers {
    fn responses() -> Responses {
        let mut problems = of_membership();
        problems.extend([
            Problem::MembershipPending,
            Problem::StreamerInactive,
            Problem::RefusedByTwitch,
            Problem::TwitchUnavailable,
            Problem::RefreshInProgress,
            Problem::Misconfigured,
        ]);
        let granted = Authorization::of(membership(), now());
        answers(success("Authorized for 12 hours, on a fresh token.", "Authorization", &granted), problems)
    }
}

pub(crate) struct StatusAnswers;

impl IntoResponses for StatusAnswers {
    fn responses() -> Responses {
        let later = Authorization::of(membership(), now() + TimeDelta::hours(1));
        answers(
            success("The authorization; `authorized` is false without one.", "Authorization", &later),
            of_membership(),
        )
    }
}

pub(crate) struct RevokeAnswers;

impl IntoResponses for RevokeAnswers {
    fn responses() -> Responses {
        let revoked = response("There is no authorization now.").build();
        answers((StatusCode::NO_CONTENT, revoked), of_membership())
    }
}

pub(crate) struct ListAnswers;

impl IntoResponses for ListAnswers {
    fn responses() -> Responses {
        let list = Authorizations::of(StreamerId(STREAMER), vec![membership()], now());
        let problems = vec![Problem::InvalidId { field: "streamer_id" }, Problem::Unknown(Unknown::Streamer)];
        answers(
            success("One for each campaign that has invited the streamer.", "Authorizations", &list),
            problems,
        )
    }
}

pub(crate) struct CheckAnswers;

impl IntoResponses for CheckAnswers {
    fn responses() -> Responses {
        let report = HealthReport::of(CampaignId(CAMPAIGN), report());
        let problems = vec![Problem::InvalidId { field: "campaign_id" }, Problem::Unknown(Unknown::Campaign)];
        answers(success("The report, healthy or not.", "HealthReport", &report), problems)
    }
}

fn of_membership() -> Vec<Problem> {
    vec![
        Problem::InvalidId { field: "streamer_id" },
        Problem::Unknown(Unknown::Campaign),
        Problem::Unknown(Unknown::Streamer),
        Problem::Unknown(Unknown::Membership),
    ]
}

/// An answer with the header that every answer has.
fn response(description: &str) -> ResponseBuilder {
    let id = HeaderBuilder::new()
        .schema(Some(ObjectBuilder::new().schema_type(Type::String).build()))
        .description(Some("The id of the request in the log."))
        .build();
    ResponseBuilder::new().description(description).header(REQUEST_ID.as_str(), id)
}

fn success(description: &str, schema: &str, example: &impl Serialize) -> (StatusCode, Response) {
    let content = ContentBuilder::new()
        .schema(Some(Ref::from_schema_name(schema)))
        .example(serde_json::to_value(example).ok())
        .build();
    (StatusCode::OK, response(description).content("application/json", content).build())
}

/// The success, and the problems by status, each with what it looks like.
fn answers((status, success): (StatusCode, Response), mut problems: Vec<Problem>) -> Responses {
    problems.extend(ANY);
    let mut by_status = BTreeMap::<StatusCode, Vec<Problem>>::new();
    for problem in problems {
        by_status.entry(problem.case().status).or_default().push(problem);
    }
    let mut responses = Responses::from([(status.as_str().to_owned(), success.into())]);
    for (status, problems) in by_status {
        let examples = problems.iter().map(|problem| {
            let case = problem.case();
            let value = serde_json::to_value(problem.body(EXAMPLE_ID)).ok();
            (case.name, ExampleBuilder::new().summary(case.title).value(value).build())
        });
        let content = ContentBuilder::new()
            .schema(Some(Ref::from_schema_name("Problem")))
            .examples_from_iter(examples)
            .build();
        let names: Vec<_> = problems.iter().map(|problem| format!("`{}`", problem.case().name)).collect();
        let mut response = response(&names.join(", ")).content(PROBLEM_JSON, content);
        if problems.iter().any(|problem| problem.retry_after().is_some()) {
            let seconds = HeaderBuilder::new()
                .schema(Some(ObjectBuilder::new().schema_type(Type::Integer).minimum(Some(1)).build()))
                .description(Some("Seconds after which to repeat the request."))
                .build();
            response = response.header("retry-after", seconds);
        }
        responses.insert(status.as_str().to_owned(), response.build().into());
    }
    responses
}

const CAMPAIGN: Uuid = uuid!("5c0e7a52-3a35-4b7c-9a8b-0f6d2a1c9e11");
const STREAMER: Uuid = uuid!("0b9d6f3e-6f0c-4d56-8f9a-3f1c7e5a2b44");

/// The time in the examples.
fn now() -> DateTime<Utc> {
    DateTime::from_timestamp(1_795_813_200, 0).unwrap_or_default()
}

fn streamer(id: Uuid, login: &str, display_name: &str) -> Streamer {
    Streamer { id: StreamerId(id), login: login.to_owned(), display_name: display_name.to_owned() }
}

fn token() -> TokenState {
    TokenState { expires_at: Some(now() + TimeDelta::hours(4)), ..TokenState::default() }
}

fn membership() -> Membership {
    Membership {
        campaign: CampaignId(CAMPAIGN),
        campaign_name: "Les Brumes".to_owned(),
        streamer: streamer(STREAMER, "brindille", "Brindille"),
        streamer_is_active: true,
        status: MembershipStatus::Active,
        authorization: Some(authorization::Authorization::granted(now())),
        token: token(),
    }
}

fn report() -> health::HealthReport {
    let hours = authorization::Authorization::granted(now() - TimeDelta::hours(2));
    let participant = |streamer, is_game_master, authorization| Participant {
        streamer,
        is_active: true,
        is_game_master,
        authorization,
        has_refresh_token: true,
        token: token(),
    };
    let checked = |participant, finding| Checked {
        participant,
        finding,
        detail: None,
        token_expires_at: token().expires_at,
    };
    let others =
        [uuid!("8e1f2d7a-52a4-4d0b-bb1e-6c1f0f3f9a02"), uuid!("c3a9b0d4-1f7e-4a0c-9d35-2b8e4f6a7c19")];
    health::HealthReport {
        streamers: vec![
            checked(participant(streamer(others[0], "corvin", "Corvin"), true, None), Finding::Ok),
            checked(
                participant(streamer(STREAMER, "brindille", "Brindille"), false, Some(hours)),
                Finding::Refreshed,
            ),
            checked(
                participant(streamer(others[1], "sable", "Sable"), false, None),
                Finding::Issue(health::Issue::AuthorizationMissing),
            ),
        ],
        twitch: TwitchHealth::Available,
        started_at: now(),
        database_took: TimeDelta::milliseconds(3),
        twitch_took: TimeDelta::milliseconds(96),
    }
}
