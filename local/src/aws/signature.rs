//! Signature Version 4, as far as it can be checked without the key: there, well formed, and for this service.

use axum::http::{HeaderMap, StatusCode};

use super::{KEY_ID, REGION, Refusal, SSO_TOKEN, Service};

/// Whether the request is signed as AWS wants it.
pub(super) fn check(service: Service, headers: &HeaderMap) -> Result<(), Refusal> {
    if service == Service::Portal {
        return portal(headers);
    }
    let refused = |code, message: String| Refusal::new(service, StatusCode::FORBIDDEN, code, message);
    let text = |name| headers.get(name).and_then(|value| value.to_str().ok());
    let Some(authorization) = text("authorization") else {
        return Err(refused(
            "MissingAuthenticationTokenException",
            "Missing Authentication Token".to_owned(),
        ));
    };
    let incomplete =
        |what: &str| refused("IncompleteSignatureException", format!("Authorization header: {what}"));
    let fields = authorization
        .strip_prefix("AWS4-HMAC-SHA256 ")
        .ok_or_else(|| incomplete("the algorithm is not AWS4-HMAC-SHA256"))?;
    let field = |name: &str| fields.split(", ").find_map(|field| field.strip_prefix(name)?.strip_prefix('='));

    let credential = field("Credential").ok_or_else(|| incomplete("no Credential"))?;
    let date = text("x-amz-date").filter(|date| is_date(date)).ok_or_else(|| incomplete("no X-Amz-Date"))?;
    let name = match service {
        Service::Scheduler => "scheduler",
        Service::Events => "events",
        Service::Secrets => "secretsmanager",
        Service::CloudFormation => "cloudformation",
        Service::Lambda => "lambda",
        Service::Portal => "awsssoportal",
    };
    let scope = format!("{KEY_ID}/{}/{REGION}/{name}/aws4_request", &date[..8]);
    if credential != scope {
        return Err(refused("InvalidSignatureException", format!("Credential should be scoped to {scope}")));
    }
    let signed: Vec<_> = field("SignedHeaders").unwrap_or_default().split(';').collect();
    if !["host", "x-amz-date"].iter().all(|needed| signed.contains(needed)) || !signed.is_sorted() {
        return Err(incomplete("SignedHeaders lacks host or x-amz-date, or is not sorted"));
    }
    let hex = |byte: u8| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte);
    if !field("Signature").is_some_and(|text| text.len() == 64 && text.bytes().all(hex)) {
        return Err(incomplete("Signature is not 64 hexadecimal digits"));
    }
    Ok(())
}

/// The credentials of an earlier sign-in.
fn portal(headers: &HeaderMap) -> Result<(), Refusal> {
    let token = headers.get("x-amz-sso_bearer_token").and_then(|value| value.to_str().ok());
    if token == Some(SSO_TOKEN) {
        return Ok(());
    }
    let message = "Session token not found or invalid";
    Err(Refusal::new(Service::Portal, StatusCode::UNAUTHORIZED, "UnauthorizedException", message))
}

/// `20261123T041500Z`.
fn is_date(text: &str) -> bool {
    chrono::NaiveDateTime::parse_from_str(text, "%Y%m%dT%H%M%SZ").is_ok() && text.len() == 16
}
