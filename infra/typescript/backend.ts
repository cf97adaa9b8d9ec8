// How a backend calls `tokens serve`: grant, health check and revoke. The types in api.ts are generated from docs/openapi.json:
//
//   npm ci && npm run build
//   TOKENS_URL=http://127.0.0.1:8080 TOKENS_KEY=… node dist/backend.js CAMPAIGN STREAMER

import createClient from "openapi-fetch";
import type { components, paths } from "./api.js";

type Problem = components["schemas"]["Problem"];

const { TOKENS_URL: baseUrl, TOKENS_KEY: key } = process.env;
const tokens = createClient<paths>({ baseUrl, headers: { authorization: `Bearer ${key}` } });
const AUTHORIZATION = "/campaigns/{campaign_id}/streamers/{streamer_id}/authorization";

/** The user can be shown `action`. After 429 and 503, try again later. */
function failed(problem?: Problem) {
    return new Error(problem ? `${problem.status} ${problem.title}: ${problem.detail} (${problem.action})` : "no answer");
}

/** Authorizes the campaign for 12 hours, with a fresh token. Reload the streamer's model afterwards: its tokens have changed. */
export async function grant(campaign_id: string, streamer_id: string) {
    const { data, error } = await tokens.POST(AUTHORIZATION, { params: { path: { campaign_id, streamer_id } } });
    if (!data) throw failed(error);
    return data;
}

/** Before a session: what each channel still needs. Nothing is missing if the list is empty. */
export async function check(campaign_id: string) {
    const { data, error } = await tokens.POST("/campaigns/{campaign_id}/health-check", { params: { path: { campaign_id } } });
    if (!data) throw failed(error);
    return data.streamers.filter(({ status }) => status === "issue" || status === "unknown");
}

/** The authorization ends now. */
export async function revoke(campaign_id: string, streamer_id: string) {
    const { error, response } = await tokens.DELETE(AUTHORIZATION, { params: { path: { campaign_id, streamer_id } } });
    if (!response.ok) throw failed(error);
}

const [campaign, streamer] = process.argv.slice(2);
if (campaign && streamer) {
    const { authorized, expires_at } = await grant(campaign, streamer);
    console.log("granted:", authorized, expires_at);
    console.log("needed before a session:", (await check(campaign)).map(({ login, issue }) => `${login} ${issue}`));
    await revoke(campaign, streamer);
    console.log("revoked");
}
