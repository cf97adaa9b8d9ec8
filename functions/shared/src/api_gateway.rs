//! What the functions behind API Gateway's HTTP API share: from its event to a request that says who asks, and from an
//! answer to what API Gateway takes.
//!
//! Who asks stands in the event's request context, which API Gateway writes after IAM has authenticated the caller. Nothing
//! that a client sends ends up there. A route that has lost its authorizer has no caller in it, and is refused.
use std::convert::Infallible;
use std::sync::{Arc, OnceLock};

use axum::Router;
use axum::body::Body;
use axum::http::{Uri, uri::PathAndQuery};
use axum::response::Response;
use lambda_http::aws_lambda_events::apigw::{
    ApiGatewayRequestAuthorizerIamDescription, ApiGatewayV2httpRequestContext,
};
use lambda_http::request::RequestContext;
use lambda_http::tower::ServiceExt;
use lambda_http::{Request, RequestExt, service_fn};
use tokens_api::{Context, Problem};
use tokens_domain::Caller;
use tokens_service::Host;
use tokens_service::shutdown::Shutdown;
use tokens_telemetry::metrics::written_after;

use crate::Error;

/// What `cargo lambda watch` gives instead of an ARN.
const WATCHED: &str = "function-arn";

/// Not an account of a customer.
const LOCAL_ACCOUNT: &str = "000000000000";

/// Serves routes to API Gateway. Only requests of callers of the function's own account reach them.
pub(crate) async fn serve(routes: fn(Arc<Host>) -> Router) -> Result<(), Error> {
    let (environment, shutdown) = (crate::start()?, Shutdown::listen());
    let (host, made) = (Arc::new(crate::host(environment, &shutdown)), OnceLock::new());
    let answer = async |request| {
        let get = || made.get_or_init(|| routes(host.clone())).clone();
        Ok::<_, Infallible>(shutdown.event(written_after(answer(get, request))).await)
    };
    shutdown.serve(lambda_http::run(service_fn(answer))).await
}

/// The routes are made for the first caller that is let in, so that the function starts sooner.
async fn answer(routes: impl FnOnce() -> Router, request: Request) -> Response {
    let lambda = request.lambda_context();
    let Some(RequestContext::ApiGatewayV2(gateway)) = request.request_context_ref() else {
        return refuse(Problem::CallerUnidentified, &lambda.request_id);
    };
    let request_id = gateway.request_id.clone().unwrap_or_else(|| lambda.request_id.clone());
    let caller = match caller(gateway, &lambda.invoked_function_arn) {
        Ok(caller) => caller,
        Err(problem) => return refuse(problem, &request_id),
    };
    let path = without_stage(request.raw_http_path(), gateway.stage.as_deref());
    let Ok(path) = PathAndQuery::try_from(path) else {
        return Problem::UnknownRoute.answer(&request_id);
    };
    let mut request = request.map(Body::new);
    *request.uri_mut() = Uri::from(path);
    request.extensions_mut().insert(Context {
        caller,
        request_id,
        client: None,
        deadline: crate::deadline(lambda.deadline),
    });
    // A router is always ready and never fails.
    routes().oneshot(request).await.unwrap_or_else(|never: Infallible| match never {})
}

/// The caller, if it belongs to the account that the function runs in.
fn caller(gateway: &ApiGatewayV2httpRequestContext, function_arn: &str) -> Result<Caller, Problem> {
    let iam = gateway.authorizer.as_ref().and_then(|authorizer| authorizer.iam.as_ref());
    let Some(ApiGatewayRequestAuthorizerIamDescription {
        user_arn: Some(arn),
        account_id: Some(account),
        ..
    }) = iam
    else {
        return Err(Problem::CallerUnidentified);
    };
    if account_of(function_arn) != Some(account) {
        return Err(Problem::CallerForeign);
    }
    Ok(Caller(arn.clone()))
}

/// The account that a function runs in: `arn:aws:lambda:REGION:ACCOUNT:function:NAME`. Lambda names it always; `cargo lambda
/// watch` never does, and stands for the account of the local stack and of the events in infra/events, which no customer has.
fn account_of(function_arn: &str) -> Option<&str> {
    if function_arn == WATCHED { Some(LOCAL_ACCOUNT) } else { function_arn.split(':').nth(4) }
}

fn refuse(problem: Problem, request_id: &str) -> Response {
    tracing::warn!(request_id, ?problem, "refused");
    problem.answer(request_id)
}

/// The path as the routes know it: a stage other than `$default` stands before it, unless the API has a domain of its own.
fn without_stage<'a>(path: &'a str, stage: Option<&str>) -> &'a str {
    let rest = stage.and_then(|stage| path.strip_prefix('/')?.strip_prefix(stage));
    rest.filter(|rest| rest.starts_with('/')).unwrap_or(path)
}

#[cfg(test)]
mod tests {
    use axum::body::to_bytes;
    use axum::extract::Request as AxumRequest;
    use axum::http::StatusCode;
    use axum::routing::any;
    use lambda_http::Context as LambdaContext;
    use serde_json::{Value, json};

    use super::*;

    const FIXTURE: &str = include_str!("../../../tests/fixtures/example-apigw-v2-request-iam.json");
    const ARN: &str = "arn:aws:lambda:eu-west-3:1234567890:function:grant-refresh";

    /// A route that says what it was let in with.
    fn routes() -> Router {
        let say = async |request: AxumRequest| {
            let Some(Context { caller, request_id, deadline, .. }) = request.extensions().get() else {
                return "no context".to_owned();
            };
            format!("{caller} {request_id} {} {}", deadline.is_some(), request.uri())
        };
        Router::new().route("/my/path", any(say))
    }

    /// The event of the fixture with some members changed, answered in a function of this name.
    async fn answered(changes: &[(&str, Value)], arn: &str) -> (StatusCode, String) {
        let mut event: Value = serde_json::from_str(FIXTURE).unwrap();
        for (pointer, value) in changes {
            *event.pointer_mut(pointer).unwrap() = value.clone();
        }
        let mut lambda = LambdaContext::default();
        lambda.request_id = "of-lambda".to_owned();
        lambda.deadline = 1_795_813_200_000;
        lambda.invoked_function_arn = arn.to_owned();
        let request = lambda_http::request::from_str(&event.to_string()).unwrap();
        let response = answer(routes, request.with_lambda_context(lambda)).await;
        let (parts, body) = response.into_parts();
        (parts.status, String::from_utf8(to_bytes(body, usize::MAX).await.unwrap().to_vec()).unwrap())
    }

    #[tokio::test]
    async fn a_caller_of_our_account_is_let_in() {
        let (status, said) = answered(&[], ARN).await;
        assert_eq!(status, StatusCode::OK, "{said}");
        assert_eq!(said, "arn:aws:iam::1234567890:user/Admin id true /my/path");
    }

    #[tokio::test]
    async fn under_cargo_lambda_watch_only_the_local_account_is() {
        let account = |account: &str| [("/requestContext/authorizer/iam/accountId", json!(account))];
        assert_eq!(answered(&account(LOCAL_ACCOUNT), WATCHED).await.0, StatusCode::OK);
        for (account, arn) in
            [(account("1234567890"), WATCHED), (account(LOCAL_ACCOUNT), ARN), (account(""), WATCHED)]
        {
            assert_eq!(answered(&account, arn).await.0, StatusCode::FORBIDDEN, "{account:?} at {arn}");
        }
    }

    #[tokio::test]
    async fn a_request_without_an_id_gets_that_of_the_invocation() {
        let (_, said) = answered(&[("/requestContext/requestId", Value::Null)], ARN).await;
        assert!(said.contains(" of-lambda "), "{said}");
    }

    #[tokio::test]
    async fn other_callers_are_refused() {
        for (pointer, value) in [
            ("/requestContext/authorizer", Value::Null),
            ("/requestContext/authorizer", json!({})),
            ("/requestContext/authorizer", json!({"jwt": {"claims": {"sub": "a-user"}, "scopes": null}})),
            (
                "/requestContext/authorizer",
                json!({"lambda": {"userArn": "arn:aws:iam::1234567890:user/Admin"}}),
            ),
            ("/requestContext/authorizer/iam", json!({})),
            ("/requestContext/authorizer/iam/userArn", Value::Null),
            ("/requestContext/authorizer/iam/accountId", Value::Null),
        ] {
            let (status, said) = answered(&[(pointer, value)], ARN).await;
            assert_eq!(status, StatusCode::FORBIDDEN, "{pointer}");
            assert!(said.contains(":caller-unidentified") && said.contains(r#""request_id":"id""#), "{said}");
        }
        let other = ("/requestContext/authorizer/iam/accountId", json!("210987654321"));
        for (changes, arn) in
            [(vec![other], ARN), (vec![], "arn:aws:lambda:eu-west-3::function:x"), (vec![], "")]
        {
            let (status, said) = answered(&changes, arn).await;
            assert_eq!(status, StatusCode::FORBIDDEN);
            assert!(said.contains(":caller-foreign"), "{said}");
        }
    }

    #[test]
    fn a_stage_is_no_part_of_the_path() {
        for (path, stage, expected) in [
            ("/my/path", None, "/my/path"),
            ("/my/path", Some("$default"), "/my/path"),
            ("/prod/my/path", Some("prod"), "/my/path"),
            ("/my/path", Some("prod"), "/my/path"),
            ("/production/path", Some("prod"), "/production/path"),
            ("/prod", Some("prod"), "/prod"),
            ("", Some("prod"), ""),
        ] {
            assert_eq!(without_stage(path, stage), expected, "{path} at {stage:?}");
        }
    }

    #[tokio::test]
    async fn a_path_is_taken_as_it_was_sent() {
        let at = async |path: &str| answered(&[("/rawPath", json!(path))], ARN).await;
        assert_eq!(at("/prod/my/path").await.0, StatusCode::NOT_FOUND);
        for path in ["", "/", "my/path", "/my/../my/path", "/a b", "/%ff", "/my/path%2f"] {
            let (status, said) = at(path).await;
            assert_eq!(status, StatusCode::NOT_FOUND, "{path}: {said}");
        }
    }
}
