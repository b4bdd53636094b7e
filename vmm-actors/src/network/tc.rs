//! Leading what arrives on one device out of another, by tc(8) means.

use futures::TryStreamExt;
use rtnetlink::Error;
use rtnetlink::packet_core::{
    NLM_F_ACK, NLM_F_CREATE, NLM_F_EXCL, NLM_F_REQUEST, NetlinkMessage, NetlinkPayload,
};
use rtnetlink::packet_route::RouteNetlinkMessage;
use rtnetlink::packet_route::tc::{
    TcAction, TcActionAttribute, TcActionGeneric, TcActionMirror, TcActionMirrorOption, TcActionOption,
    TcActionType, TcAttribute, TcFilterU32, TcFilterU32Option, TcHandle, TcMessage, TcMirror,
    TcMirrorActionType, TcOption, TcU32Key, TcU32Selector, TcU32SelectorFlags,
};

use super::NetworkError;
use super::session::{Session, errno};

/// The only filter of ours on a device is `pref 48`, u32, node `bd` of its root hash table. Fixed, so that a second
/// one is refused and not stacked upon the first.
const PRIORITY: u16 = 48;
/// Without a table's number: the kernel numbers a root table by how many there are already.
const FILTER: u32 = 0xbd;
/// Ingress qdiscs are always `ffff:`.
const QDISC: u32 = 0xffff_0000;

/// A device as tc knows it.
#[derive(Debug, Clone, Copy)]
pub(super) struct Device<'a> {
    pub(super) index: u32,
    pub(super) name: &'a str,
}

impl Session {
    /// Leads everything that arrives on `from` out of `to`. A redirect of ours that is there already is replaced.
    pub(super) async fn redirect(&self, from: Device<'_>, to: Device<'_>) -> Result<(), NetworkError> {
        let wrap = |source| NetworkError::Redirect { from: from.name.into(), to: to.name.into(), source };
        let qdisc = ingress_qdisc(from.index).map_err(wrap)?;
        self.create(RouteNetlinkMessage::NewQueueDiscipline(qdisc), true).await.map_err(wrap)?;
        let filter = redirect_filter(from.index, to.index).map_err(wrap)?;
        let filter = RouteNetlinkMessage::NewTrafficFilter(filter);
        if self.create(filter.clone(), true).await.map_err(wrap)? == Created::WasThere {
            self.remove_filter(from).await.map_err(wrap)?;
            self.create(filter, false).await.map_err(wrap)?;
        }
        Ok(())
    }

    /// Removes our redirect from a device, and the ingress qdisc if nothing else uses it.
    pub(super) async fn remove_redirect(&self, device: Device<'_>) -> Result<(), NetworkError> {
        let wrap = |source| NetworkError::RemoveRedirect { link: device.name.into(), source };
        if !self.remove_filter(device).await.map_err(wrap)? || self.has_filters(device).await? {
            return Ok(());
        }
        let qdisc = ingress_qdisc(device.index).map_err(wrap)?;
        let request = NetlinkMessage::from(RouteNetlinkMessage::DelQueueDiscipline(qdisc));
        self.execute(request, NLM_F_REQUEST | NLM_F_ACK).await.or_else(ignore_absent).map_err(wrap)
    }

    async fn create(&self, message: RouteNetlinkMessage, tolerate: bool) -> Result<Created, Error> {
        let flags = NLM_F_REQUEST | NLM_F_ACK | NLM_F_CREATE | NLM_F_EXCL;
        match self.execute(NetlinkMessage::from(message), flags).await {
            Ok(()) => Ok(Created::New),
            Err(error) if tolerate && is_there(&error) => Ok(Created::WasThere),
            Err(error) => Err(error),
        }
    }

    /// Removes our priority with all that is in it. Says whether there was one.
    async fn remove_filter(&self, device: Device<'_>) -> Result<bool, Error> {
        let mut message = filter(device.index)?;
        message.header.handle = TcHandle::UNSPEC;
        message.attributes.push(TcAttribute::Kind(TcFilterU32::KIND.to_owned()));
        let request = NetlinkMessage::from(RouteNetlinkMessage::DelTrafficFilter(message));
        match self.execute(request, NLM_F_REQUEST | NLM_F_ACK).await {
            Ok(()) => Ok(true),
            Err(error) => ignore_absent(error).map(|()| false),
        }
    }

    /// Whether the ingress of a device has any filter.
    async fn has_filters(&self, device: Device<'_>) -> Result<bool, NetworkError> {
        let index = index(device.index).map_err(|source| NetworkError::List { what: "filters", source })?;
        let mut request = self.handle().traffic_filter(index);
        let filters: Vec<TcMessage> = request
            .get()
            .ingress()
            .execute()
            .try_collect()
            .await
            .map_err(|source| NetworkError::List { what: "filters", source })?;
        // A priority that was emptied may still be listed, as a filter without a handle.
        Ok(filters.iter().any(|filter| filter.header.handle != TcHandle::UNSPEC))
    }

    async fn execute(
        &self,
        mut request: NetlinkMessage<RouteNetlinkMessage>,
        flags: u16,
    ) -> Result<(), Error> {
        request.header.flags = flags;
        let mut answers = self.handle().clone().request(request)?;
        while let Some(answer) = futures::StreamExt::next(&mut answers).await {
            if let NetlinkPayload::Error(error) = answer.payload
                && error.code.is_some()
            {
                return Err(Error::NetlinkError(error));
            }
        }
        Ok(())
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Created {
    New,
    WasThere,
}

/// A qdisc says EEXIST; a u32 node whose number is taken is ENOSPC.
fn is_there(error: &Error) -> bool {
    matches!(errno(error), Some(nix::libc::EEXIST | nix::libc::ENOSPC))
}

/// No such filter, qdisc or device: what should go is gone.
fn ignore_absent(error: Error) -> Result<(), Error> {
    use nix::libc::{EINVAL, ENODEV, ENOENT};
    match errno(&error) {
        // EINVAL: the device has no ingress qdisc (or, for a filter, nothing with that parent).
        Some(ENOENT | ENODEV | EINVAL) => Ok(()),
        Some(_) | None => Err(error),
    }
}

fn index(index: u32) -> Result<i32, Error> {
    i32::try_from(index)
        .map_err(|_too_large| Error::InvalidNla(format!("interface index {index} is too large")))
}

fn ingress_qdisc(device: u32) -> Result<TcMessage, Error> {
    let mut message = TcMessage::with_index(index(device)?);
    message.header.parent = TcHandle::INGRESS;
    message.header.handle = TcHandle::from(QDISC);
    message.attributes.push(TcAttribute::Kind("ingress".to_owned()));
    Ok(message)
}

/// Where our filter on a device is.
fn filter(device: u32) -> Result<TcMessage, Error> {
    let mut message = TcMessage::with_index(index(device)?);
    // Right for a clsact qdisc, which somebody else may have put there, as well.
    message.header.parent = TcHandle { major: 0xffff, minor: TcHandle::MIN_INGRESS };
    message.header.handle = TcHandle::from(FILTER);
    // The protocol is in network order: ETH_P_ALL (3).
    message.header.info = u32::from(TcHandle { major: PRIORITY, minor: 3u16.to_be() });
    Ok(message)
}

fn redirect_filter(from: u32, to: u32) -> Result<TcMessage, Error> {
    let mut selector = TcU32Selector::default();
    selector.flags = TcU32SelectorFlags::Terminal;
    selector.nkeys = 1;
    // One key with an empty mask matches every packet.
    selector.keys = vec![TcU32Key::default()];
    let mut mirror = TcMirror::default();
    mirror.generic = TcActionGeneric::default();
    mirror.generic.action = TcActionType::Stolen;
    mirror.eaction = TcMirrorActionType::EgressRedir;
    mirror.ifindex = to;
    let mut action = TcAction::default();
    action.attributes = vec![
        TcActionAttribute::Kind(TcActionMirror::KIND.to_owned()),
        TcActionAttribute::Options(vec![TcActionOption::Mirror(TcActionMirrorOption::Parms(mirror))]),
    ];
    let options = [TcFilterU32Option::Selector(selector), TcFilterU32Option::Action(vec![action])];
    let mut message = filter(from)?;
    message.attributes.push(TcAttribute::Kind(TcFilterU32::KIND.to_owned()));
    message.attributes.push(TcAttribute::Options(options.into_iter().map(TcOption::U32).collect()));
    Ok(message)
}
