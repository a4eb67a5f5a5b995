//! What comes over the network: messages of the control contract, and frames of the data path.

use gfs_core::ids::SessionId;
use gfs_core::meta::request::Query;
use gfs_net::frame::{self, PREFIX};
use gfs_proto::{convert, v1};
use prost::Message;

/// What a client sends to the master. A request comes out the same again.
pub fn client_message(bytes: &[u8]) {
    use v1::client_message::Body;
    let Ok(message) = v1::ClientMessage::decode(bytes) else { return };
    match message.body {
        Some(Body::Mutation(mutation)) => {
            if let Ok(command) = convert::client_command(SessionId(1), mutation) {
                let again = convert::client_command(SessionId(1), convert::mutation_to_wire(&command));
                assert_eq!(again.as_ref().ok(), Some(&command));
            }
        }
        Some(Body::Query(query)) => {
            if let Some(Ok(query)) = query.kind.map(Query::try_from) {
                let again = Query::try_from(v1::query_request::Kind::from(&query));
                assert_eq!(again.as_ref().ok(), Some(&query));
            }
        }
        _ => {}
    }
}

/// What the master sends to a client, and to a chunk server.
pub fn server_message(bytes: &[u8]) {
    use v1::server_message::Body;
    if let Ok(message) = v1::ServerMessage::decode(bytes) {
        match message.body {
            Some(Body::Reply(reply)) => {
                if let Ok(reply) = convert::reply_from_wire(reply) {
                    let again = convert::reply_from_wire(convert::reply_to_wire(&reply));
                    assert_eq!(again.as_ref().ok(), Some(&reply));
                }
            }
            Some(Body::Locations(locations)) => {
                let _ = convert::servers_from_wire(locations.servers);
                let _ = locations.chunk.map(gfs_core::meta::request::ChunkLocation::try_from);
            }
            _ => {}
        }
    }
    if let Ok(order) = v1::MasterOrder::decode(bytes) {
        for assignment in order.assign {
            let _ = assignment.configuration.map(gfs_core::meta::request::Configuration::try_from);
            let _ = convert::servers_from_wire(assignment.servers);
        }
    }
}

/// A frame of the data path: its prefix, as it is and with its checksum made right, and its header.
pub fn frame(bytes: &[u8]) {
    let Some((prefix, header)) = bytes.split_first_chunk::<PREFIX>() else { return };
    let mut whole = *prefix;
    let crc = gfs_net::crc32c(&whole[..PREFIX - 4]);
    whole[PREFIX - 4..].copy_from_slice(&crc.to_le_bytes());
    for prefix in [prefix, &whole] {
        if let Ok(decoded) = frame::decode_prefix(prefix) {
            assert_eq!(frame::decode_prefix(&frame::encode_prefix(&decoded)), Ok(decoded));
        }
    }
    let _ = v1::DataRequest::decode(header);
    if let Ok(reply) = v1::DataReply::decode(header) {
        let _ = reply.configuration.map(gfs_core::meta::request::Configuration::try_from);
        let _ = convert::servers_from_wire(reply.servers);
    }
}
