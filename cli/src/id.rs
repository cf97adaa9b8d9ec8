//! Streamers as they are typed: by id.

use tokens_domain::StreamerId;

/// Where ids are found.
pub const LISTED: &str = "`tokens status` lists the ids of who is authorized, `tokens reactivate --since 30d --dry-run` \
                          of who was deactivated; the table `streamers` has all others";

/// For clap.
pub fn parse(text: &str) -> Result<StreamerId, String> {
    text.parse().map(StreamerId).map_err(|_| format!("give the streamer's id, a UUID: {LISTED}"))
}
