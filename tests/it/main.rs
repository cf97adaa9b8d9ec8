//! The end-to-end tests: one binary, so that they share one PostgreSQL server and one build of the program.
//! `cargo test --workspace --test it failure::` runs one folder.

mod cycle {
    mod clocks;
    mod concurrency;
    mod coverage;
    mod due;
    mod follow_up;
    mod held;
    mod interleavings;
    mod locks;
    mod races;
    mod reads;
    mod results;
    mod sessions;
    mod standing;
    mod times;
}

mod failure {
    mod aside;
    mod connections;
    mod crash;
    mod crash_at_random;
    mod evidence;
    mod failures;
    mod hidden_rows;
    mod outages;
    mod priorities;
    mod repaired;
    mod retry;
    mod scenario4;
    mod signals;
    mod stop;
    mod twitch;
}

mod http {
    mod http_api;
    mod http_functions;
    mod validity;
}

mod command {
    mod adopt;
    mod doctor;
    mod documents;
    mod env_file;
    mod from_nothing;
    mod grant;
    mod migrations;
    mod names;
    mod outbox_command;
    mod read_only;
    mod rekey;
    mod stack;
    mod tokens;
}

mod notify {
    mod delivery;
    mod notify_role;
    mod outbox;
    mod push;
}

mod deploy {
    mod build;
    mod documents;
    mod function;
    mod infra;
    mod metrics;
    mod observability;
    mod parameters;
    mod secrets;
    mod secrets_manager;
    mod template;
}

mod local {
    mod postgres;
}

mod serve {
    mod callers;
    mod end;
    mod limits;
    mod server;
    mod start;
}
