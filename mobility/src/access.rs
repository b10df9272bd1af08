//! A platform's mobile access gateway as a running agent: what `mobility-proto` decides about the virtual machines here,
//! with sockets, a clock and a tunnel interface. Where a virtual machine runs is said by its owner through
//! [`AccessGateway`].

mod link;
mod ways;

use std::collections::{BTreeMap, HashSet};
use std::net::{IpAddr, Ipv6Addr};
use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt;
use mobility_proto::gateway::{self, Carrier, Dropped, Gateway, Output};
use mobility_proto::inner::Inner;
use mobility_proto::wire::{BindingLifetime, TransientLifetime};
use tokio::sync::{broadcast, mpsc, oneshot};
use tokio::task::{AbortHandle, unconstrained, yield_now};
use tokio::time::Instant;

pub use link::Link;
pub use mobility_proto::gateway::{Grant, Happened};

use crate::advertise::Router;
use crate::agent::{Ends, Orders, packet_of, send_signalling, sleep_until, unix_ns};
use crate::data_plane::{DataPlane, Peer, PlaneChoice};
use crate::dhcp::{Lease, Server};
use crate::error::LinkError;
use crate::error::{AgentError, opening};
use crate::links::{Links, OF_GATEWAY};
use crate::plane::{self, Plane, Side};
use crate::raw::RawSocket;
use crate::tunnels::Own;
use ways::Ways;

/// How long packets of the new way wait for the end of the old one: longer than any delay between platforms.
const SETTLE: Duration = Duration::from_millis(500);
/// Anybody can send to addresses that no guest has.
const MAX_NEIGHBOURS: usize = 4096;

/// How many DNS servers virtual machines are told of at most: an option of DHCP has room for 63.
pub const MAX_DNS: usize = 16;

/// How a gateway is set up.
#[derive(Debug, Clone)]
pub struct Config {
    /// This platform's address, which is the care-of address of its virtual machines.
    pub address: Ipv6Addr,
    /// The home agent's address.
    pub anchor: Ipv6Addr,
    /// The tunnel interface's name, at most 15 bytes.
    pub interface: String,
    /// Who carries packets.
    pub plane: PlaneChoice,
    /// An address for tunnels alone, in the network of `address`, that nobody has: [`DataPlane::Seg6`] needs it.
    pub user_plane: Option<Ipv6Addr>,
    /// How many bytes may wait for one virtual machine that is on its way: 1 Gb/s for 300 ms are 37.5 MB.
    pub buffer_bytes: usize,
    /// The DNS servers that virtual machines are told of, at most [`MAX_DNS`].
    pub dns: Vec<IpAddr>,
}

/// What has happened to a virtual machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Event {
    /// Its identifier.
    pub node: String,
    /// What.
    pub happened: Happened,
}

#[derive(Debug)]
enum Command {
    Attach { node: String, link: Link, reply: oneshot::Sender<Result<(), AgentError>> },
    Detach { node: String, reply: oneshot::Sender<()> },
    Serve(Grant),
    Expect(Grant, Ipv6Addr),
    Remember(String),
    Forward(Grant, Ipv6Addr, std::time::Instant),
    Arrived(String),
    Stay(String),
    Forget(String),
    Dropped(oneshot::Sender<Dropped>),
    KeepOnly(oneshot::Sender<()>),
    End(oneshot::Sender<()>),
}

/// A running gateway. [`end`](Self::end) takes back what it told the kernel; so does the next start after a crash.
#[derive(Debug, Clone)]
pub struct AccessGateway {
    orders: Orders<Command>,
    events: broadcast::Sender<Event>,
    plane: DataPlane,
}

impl AccessGateway {
    /// Starts it. What a crash has left is removed, but on a data plane of the kernel, where guests may be using it: there
    /// [`keep_only`](Self::keep_only) removes what nobody needs.
    ///
    /// # Errors
    /// [`AgentError`].
    pub async fn start(config: Config) -> Result<Self, AgentError> {
        let Config { address, anchor, user_plane, .. } = config;
        let own = Own { address, user_plane, interface: config.interface };
        let Ends { links, signalling, plane, tunnels, index } =
            Ends::open(OF_GATEWAY, &own, config.plane).await?;
        // Also a gateway without a further address says where it takes packets: so its home agent's kernel may send them.
        let user_plane = Some(tunnels.user_plane().unwrap_or(address));
        let ways = Ways::start(links.clone(), tunnels, &own, index, anchor).await?;
        let gateway = Gateway::new(gateway::Config {
            address,
            anchor,
            user_plane,
            lifetime: BindingLifetime::from_secs(300),
            transient: TransientLifetime::from_ms(10_000),
            buffer_bytes: config.buffer_bytes,
            settle: SETTLE,
        });
        let (commands, inbox) = mpsc::channel(64);
        let (events, _) = broadcast::channel(256);
        let mut agent = Agent {
            address,
            anchor,
            gateway,
            signalling,
            plane,
            links,
            ways,
            guests: BTreeMap::new(),
            neighbours: HashSet::new(),
            dns: config.dns,
            events: events.clone(),
            start: Instant::now(),
        };
        agent.refuse_from(&[])?;
        agent.plane.announce(anchor);
        let plane = agent.ways.plane();
        // Ends when it is told to, or when nobody can give it orders any more, and takes back what the kernel was told.
        tokio::spawn(agent.run(inbox));
        Ok(Self { orders: Orders(commands), events, plane })
    }

    /// Who carries packets.
    #[must_use]
    pub fn plane(&self) -> DataPlane {
        self.plane
    }

    /// All virtual machines that run here are attached: what a crash has left for others is removed.
    ///
    /// # Errors
    /// [`AgentError::Ended`].
    pub async fn keep_only(&self) -> Result<(), AgentError> {
        self.orders.ask(Command::KeepOnly).await
    }

    /// Makes this the link between the virtual machine and this gateway.
    ///
    /// # Errors
    /// [`AgentError`].
    pub async fn attach(&self, node: &str, link: Link) -> Result<(), AgentError> {
        self.orders.ask(|reply| Command::Attach { node: node.to_owned(), link, reply }).await?
    }

    /// Takes the link back.
    ///
    /// # Errors
    /// [`AgentError::Ended`].
    pub async fn detach(&self, node: &str) -> Result<(), AgentError> {
        self.orders.ask(|reply| Command::Detach { node: node.to_owned(), reply }).await
    }

    /// The virtual machine runs here.
    ///
    /// # Errors
    /// [`AgentError::Ended`].
    pub async fn serve(&self, grant: Grant) -> Result<(), AgentError> {
        self.orders.tell(Command::Serve(grant)).await
    }

    /// The virtual machine will come from the gateway at `source`.
    ///
    /// # Errors
    /// [`AgentError::Ended`].
    pub async fn expect(&self, grant: Grant, source: Ipv6Addr) -> Result<(), AgentError> {
        self.orders.tell(Command::Expect(grant, source)).await
    }

    /// The virtual machine will be paused soon, to leave.
    ///
    /// # Errors
    /// [`AgentError::Ended`].
    pub async fn remember(&self, node: &str) -> Result<(), AgentError> {
        self.orders.tell(Command::Remember(node.to_owned())).await
    }

    /// The virtual machine has stopped at that moment and goes to the gateway at `target`, which has been given `grant`.
    ///
    /// # Errors
    /// [`AgentError::Ended`].
    pub async fn forward(
        &self,
        grant: Grant,
        target: Ipv6Addr,
        stopped: std::time::Instant,
    ) -> Result<(), AgentError> {
        self.orders.tell(Command::Forward(grant, target, stopped)).await
    }

    /// The virtual machine that was expected runs here.
    ///
    /// # Errors
    /// [`AgentError::Ended`].
    pub async fn arrived(&self, node: &str) -> Result<(), AgentError> {
        self.orders.tell(Command::Arrived(node.to_owned())).await
    }

    /// The virtual machine runs on here: the move was given up.
    ///
    /// # Errors
    /// [`AgentError::Ended`].
    pub async fn stay(&self, node: &str) -> Result<(), AgentError> {
        self.orders.tell(Command::Stay(node.to_owned())).await
    }

    /// The virtual machine does not run here any more, or does not come.
    ///
    /// # Errors
    /// [`AgentError::Ended`].
    pub async fn forget(&self, node: &str) -> Result<(), AgentError> {
        self.orders.tell(Command::Forget(node.to_owned())).await
    }

    /// What has happened, from now on.
    #[must_use]
    pub fn events(&self) -> broadcast::Receiver<Event> {
        self.events.subscribe()
    }

    /// What was not passed on so far.
    ///
    /// # Errors
    /// [`AgentError::Ended`].
    pub async fn dropped(&self) -> Result<Dropped, AgentError> {
        self.orders.ask(Command::Dropped).await
    }

    /// Ends it and takes back what it told the kernel.
    pub async fn end(&self) {
        let _ = self.orders.ask(Command::End).await;
    }
}

/// The link to one virtual machine.
struct Guest {
    link: Link,
    index: u32,
    router: Arc<Router>,
    tasks: Vec<AbortHandle>,
}

impl Drop for Guest {
    fn drop(&mut self) {
        self.tasks.iter().for_each(AbortHandle::abort);
    }
}

struct Agent {
    address: Ipv6Addr,
    anchor: Ipv6Addr,
    gateway: Gateway,
    signalling: RawSocket,
    plane: Plane,
    links: Links,
    ways: Ways,
    guests: BTreeMap<String, Guest>,
    /// Guests' addresses that the kernel has been told of.
    neighbours: HashSet<Ipv6Addr>,
    dns: Vec<IpAddr>,
    events: broadcast::Sender<Event>,
    start: Instant,
}

impl Agent {
    async fn run(mut self, mut inbox: mpsc::Receiver<Command>) {
        let mut buffer = vec![0; 4096];
        let ended = loop {
            let deadline = self.gateway.deadline().map(|deadline| self.start + deadline);
            let deadline = deadline.into_iter().chain(self.ways.deadline()).min();
            tokio::select! {
                command = inbox.recv() => match command {
                    Some(Command::End(reply)) => break Some(reply),
                    Some(command) => self.command(command).await,
                    None => break None,
                },
                received = self.signalling.receive(&mut buffer) => match received {
                    Ok((len, from)) => {
                        let packet = packet_of(from, self.address, &buffer[..len]);
                        if let Err(refusal) = self.gateway.handle_packet(self.start.elapsed(), unix_ns(), &packet) {
                            tracing::debug!("signalling from {from} was not believed: {refusal}");
                        }
                    }
                    Err(error) => {
                        tracing::error!("the gateway ends: receiving signalling: {error}");
                        break None;
                    }
                },
                side = self.plane.ready() => match side {
                    Ok(side) => self.pass(side),
                    Err(error) => {
                        tracing::error!("the gateway ends: its tunnel interface: {error}");
                        break None;
                    }
                },
                () = sleep_until(deadline) => {}
            }
            if self.gateway.deadline().is_some_and(|deadline| deadline <= self.start.elapsed()) {
                self.catch_up().await;
            }
            self.gateway.handle_timeout(self.start.elapsed(), unix_ns());
            self.drain().await;
            self.assign().await;
        };
        self.guests.clear();
        if let Err(error) = self.ways.end().await {
            tracing::warn!("not all that the gateway told the kernel could be taken back: {error}");
        }
        drop(self);
        if let Some(reply) = ended {
            let _ = reply.send(());
        }
    }

    async fn command(&mut self, command: Command) {
        let (now, ns) = (self.start.elapsed(), unix_ns());
        match command {
            Command::Attach { node, link, reply } => {
                let _ = reply.send(self.attach(node, link).await);
            }
            Command::Detach { node, reply } => {
                self.detach(&node).await;
                let _ = reply.send(());
            }
            Command::Serve(grant) => self.gateway.serve(now, ns, grant),
            Command::Expect(grant, source) => self.gateway.expect(now, ns, grant, source),
            Command::Remember(node) => self.gateway.remember(now, ns, node.as_bytes()),
            Command::Forward(grant, target, stopped) => {
                let stopped = Instant::from_std(stopped).saturating_duration_since(self.start);
                self.gateway.forward(now, ns, grant, target, stopped);
            }
            Command::Arrived(node) => self.gateway.arrived(now, ns, node.as_bytes()),
            Command::Stay(node) => self.gateway.stay(now, ns, node.as_bytes()),
            Command::Forget(node) => self.gateway.forget(now, ns, node.as_bytes()),
            Command::Dropped(reply) => {
                let _ = reply.send(self.gateway.dropped());
            }
            Command::KeepOnly(reply) => {
                let links = self.guests.values().map(|guest| &guest.link);
                if let Err(error) = self.ways.keep_only(links).await {
                    tracing::warn!("what a crash has left is not all removed: {error}");
                }
                let _ = reply.send(());
            }
            Command::End(_) => {}
        }
    }

    async fn attach(&mut self, node: String, link: Link) -> Result<(), AgentError> {
        let index = self.links.attach_guest(&link.interface, link.prefix).await?;
        if let Some(address) = link.ipv4_address() {
            self.ways.carry_ipv4().await?;
            self.links.attach_ipv4((&link.interface, index), address).await?;
        }
        self.ways.close_doorway(index, self.anchor).await?;
        if self.guests.get(&node).is_some_and(|guest| guest.index != index) {
            self.ways.detach(&node).await?;
        }
        let refused: Vec<_> = self.guests.values().map(|guest| guest.index).chain([index]).collect();
        self.refuse_from(&refused)?;
        let mtu = self.ways.plane().guest_mtu();
        let what = format!("a socket for router advertisements on {}", link.interface);
        let router = Arc::new(Router::open(index, link.prefix, mtu, &self.dns).map_err(opening(&what))?);
        // Ends with the guest, whose tasks are aborted when it is detached.
        let mut tasks = vec![tokio::spawn(router.clone().run()).abort_handle()];
        if let Some(address) = link.ipv4 {
            let dns = self.dns.iter().filter_map(|server| match server {
                IpAddr::V4(server) => Some(*server),
                IpAddr::V6(_) => None,
            });
            let lease = Lease { guest: link.link_layer, address, mtu, dns: dns.collect() };
            match Server::open(&link.interface, lease) {
                // Ends as the router does.
                Ok(server) => tasks.push(tokio::spawn(server.run()).abort_handle()),
                Err(error) => tracing::warn!(
                    "the guest on {} gets no DHCP, and has its IPv4 address only if it was set up by hand: opening UDP port 67 \
                     there, which another DHCP server may have: {error}",
                    link.interface
                ),
            }
        }
        self.neighbours.retain(|address| !link.has(*address));
        self.guests.insert(node, Guest { link, index, router, tasks });
        Ok(())
    }

    async fn detach(&mut self, node: &str) {
        let Some(guest) = self.guests.remove(node) else { return };
        if let Err(error) = self.ways.detach(node).await {
            tracing::warn!("{error}");
        }
        let Link { interface, prefix, .. } = &guest.link;
        self.neighbours.retain(|address| !guest.link.has(*address));
        let of_ipv4 = match guest.link.ipv4_address() {
            Some(address) => self.links.detach_ipv4(address).await,
            None => Ok(()),
        };
        if let Err(error) = self.links.detach_guest(interface, *prefix).await.and(of_ipv4) {
            tracing::warn!("the link to {node} could not be taken back: {error}");
        }
        let refused: Vec<_> = self.guests.values().map(|guest| guest.index).collect();
        if let Err(error) = self.refuse_from(&refused) {
            tracing::warn!("{error}");
        }
    }

    /// No guest speaks for a gateway or the home agent.
    fn refuse_from(&self, interfaces: &[u32]) -> Result<(), AgentError> {
        // What the kernel takes as well is the kernel's.
        let twice = self.ways.taken_twice();
        let refused = self
            .signalling
            .refuse_from(interfaces, &[])
            .and_then(|()| self.plane.refuse_from(interfaces, &twice));
        refused.map_err(opening("sockets to all but guests"))
    }

    /// Before the first packet for an address of a guest: the kernel shall not have to look for it.
    async fn meet(&mut self, packet: &[u8]) {
        let Some(Inner { destination, .. }) = Inner::parse(packet) else { return };
        if self.neighbours.contains(&destination) {
            return;
        }
        if self.neighbours.len() >= MAX_NEIGHBOURS {
            self.neighbours.clear();
        }
        self.neighbours.insert(destination);
        let guest = self.guests.values().find(|guest| guest.link.has(destination));
        let Some(guest) = guest else { return };
        if let Err(error) = self.links.neighbour(guest.index, destination, guest.link.link_layer).await {
            tracing::debug!("{error}");
        }
    }

    /// Takes what has come by now: when it is judged that something has not, it shall not be that this program was busy.
    async fn catch_up(&mut self) {
        // The runtime looks which sockets have something.
        yield_now().await;
        for _ in 0..plane::QUEUE {
            match unconstrained(self.plane.ready()).now_or_never() {
                Some(Ok(side)) => self.pass(side),
                // An error comes again.
                Some(Err(_)) | None => break,
            }
        }
    }

    fn pass(&mut self, side: Side) {
        let now = self.start.elapsed();
        match side {
            Side::Kernel(count) => {
                let Self { plane, gateway, anchor, ways, .. } = self;
                let in_kernel = ways.is_in_kernel();
                ways.came();
                for packet in plane.taken(count) {
                    // Of IPv6, what guests send does not come here when the kernel carries it; what the home agent sends does.
                    if in_kernel && !Inner::parse(packet).is_some_and(|inner| inner.is_ipv4()) {
                        gateway.handle_tunnelled(now, *anchor, packet.to_vec());
                    } else {
                        gateway.handle_guest(packet.to_vec());
                    }
                }
            }
            Side::Tunnel => {
                for (from, packet) in self.plane.tunnelled() {
                    self.gateway.handle_tunnelled(now, from, packet);
                }
            }
        }
    }

    async fn drain(&mut self) {
        while let Some(output) = self.gateway.poll_output() {
            match output {
                Output::Send(packet) => {
                    self.plane.flush_tunnels();
                    send_signalling(&self.signalling, &packet);
                }
                Output::Tunnel { to, packet } => self.plane.send_soon(to, packet),
                Output::Deliver(packet) => {
                    self.meet(&packet).await;
                    self.plane.deliver(packet);
                }
                Output::Advertise { node } => {
                    if let Some(guest) = self.guests.get(&*String::from_utf8_lossy(&node)) {
                        guest.router.advertise();
                    }
                }
                Output::Anchor { answers: true } => {
                    tracing::info!("the home agent answers; it is asked once more for every binding");
                }
                Output::Anchor { answers: false } => tracing::warn!(
                    "the home agent does not answer any more: see that it runs and is reached; until then no address can move"
                ),
                Output::AnchorAt(user_plane) => {
                    self.plane.announce(user_plane);
                    let peer = Peer { address: self.anchor, user_plane };
                    if let Err(error) = self.ways.reach(peer).await {
                        tracing::warn!("the way to the home agent stays as it was: {error}");
                    }
                }
                Output::Event { node, happened } => {
                    let node = String::from_utf8_lossy(&node).into_owned();
                    // Nobody may be listening.
                    let _ = self.events.send(Event { node, happened });
                }
            }
        }
        self.plane.flush_tunnels();
        self.plane.flush().await;
        self.gateway.delivered(self.start.elapsed());
    }

    /// Has guests' packets carried by whoever may.
    async fn assign(&mut self) {
        let log = |node: &str, done: Result<(), LinkError>| {
            if let Err(error) = done {
                tracing::warn!("what comes for {node} takes the way it took: {error}");
            }
        };
        for (node, guest) in &self.guests {
            let by = self.gateway.carrier(node.as_bytes());
            log(node, self.ways.assign(node, &guest.link, guest.index, by).await);
        }
        for node in self.ways.nodes() {
            // It has left, and all that was to be forwarded has been.
            if !self.guests.contains_key(&node) && self.gateway.carrier(node.as_bytes()) == Carrier::Nobody {
                log(&node, self.ways.release(&node).await);
            }
        }
        for node in self.ways.due(&self.plane) {
            if let Some(guest) = self.guests.get(&node) {
                log(&node, self.ways.take_over(&node, &guest.link, guest.index).await);
            }
        }
    }
}
