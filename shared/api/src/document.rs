//! The API's description (OpenAPI 3.1), made from the routes, the bodies and the answers.

use utoipa::openapi::extensions::ExtensionsBuilder;
use utoipa::openapi::security::{ApiKey, ApiKeyValue, HttpAuthScheme, HttpBuilder, SecurityScheme};
use utoipa::{Modify, OpenApi};
use utoipa_axum::router::OpenApiRouter;

use crate::body::{Authorization, Authorizations, HealthReport};
use crate::problem::ProblemBody;
use crate::routes;

/// The API's description.
#[must_use]
pub fn document() -> utoipa::openapi::OpenApi {
    let paths = OpenApiRouter::<()>::with_openapi(Document::openapi());
    let mut document = paths.into_openapi();
    document.merge(routes::grants().into_openapi());
    document.merge(routes::health().into_openapi());
    document
}

#[derive(OpenApi)]
#[openapi(
    info(
        title = "twitch-token-refresh",
        description = "Grants, shows and revokes what streamers allow campaigns, and checks a campaign before a session.",
    ),
    components(schemas(Authorization, Authorizations, HealthReport, ProblemBody)),
    modifiers(&Signed),
    security(("sigv4" = []), ("bearer" = [])),
    tags(
        (name = "grants", description = "What a streamer allows a campaign for 12 hours."),
        (name = "health check", description = "Whether each channel that a campaign needs can be used now."),
    ),
)]
struct Document;

/// Requests are signed, as API Gateway's IAM authorizer wants it, or have a key of `tokens serve`.
struct Signed;

impl Modify for Signed {
    fn modify(&self, document: &mut utoipa::openapi::OpenApi) {
        let mut key = ApiKeyValue::with_description(
            "Authorization",
            "AWS Signature Version 4 (service `execute-api`) of a caller who may invoke the API.",
        );
        key.extensions =
            Some(ExtensionsBuilder::new().add("x-amazon-apigateway-authtype", "awsSigv4").build());
        let components = document.components.get_or_insert_default();
        components.add_security_scheme("sigv4", SecurityScheme::ApiKey(ApiKey::Header(key)));
        let bearer = HttpBuilder::new()
            .scheme(HttpAuthScheme::Bearer)
            .description(Some("A key of `tokens serve`, as `tokens keys generate` prints it."))
            .build();
        components.add_security_scheme("bearer", SecurityScheme::Http(bearer));
    }
}
