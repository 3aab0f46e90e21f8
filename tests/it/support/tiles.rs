//! Tiles of a tenant's tree, made from its leaves and by nothing that is tested.

use std::sync::Arc;

use byok::model::TenantUid;
use byok::store::{Change, Database, Tile, TileId, WIDTH};

use super::rows::changes;

/// Adds the tiles of level 0 that the current log's entries fill.
pub(crate) async fn derive(database: &Arc<dyn Database>, tenant: TenantUid) {
    let head = database.log_head(tenant).await.expect("it is read").expect("there is a log");
    let mut tiles = Vec::new();
    for index in 0..head.frontier.size() / WIDTH {
        let first = head.first + index * WIDTH;
        let leaves = database.leaves(tenant, first..first + WIDTH).await.expect("they are read");
        if leaves.len() as u64 == WIDTH {
            let hashes = leaves.into_iter().map(|(_, leaf)| leaf).collect();
            tiles.push(Tile { id: TileId { level: 0, index }, hashes });
        }
    }
    let add = Change::AddTiles { log: head.log, tiles };
    database.commit(&changes(tenant, vec![add])).await.expect("they are added");
}
