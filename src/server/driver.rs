//! Drives the session of a connection.

use std::sync::Arc;

use super::{Shared, admission::Permit};
use crate::{core::close::CloseCode, transport::Connection};

/// Serves one connection until it ends.
pub async fn drive(connection: Connection, permit: Permit, shared: Arc<Shared>) {
    let code = if shared.stopping.is_cancelled() { CloseCode::GoingAway } else { CloseCode::Overloaded };
    connection.writer.close(code).await;
    drop(permit);
}
