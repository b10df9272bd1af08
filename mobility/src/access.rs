//! A platform's mobile access gateway as a running agent: what `mobility-proto` decides about the virtual machines here,
//! with sockets, a clock and a tunnel interface. Where a virtual machine runs is said by its owner through
//! [`AccessGateway`].

use std::collections::{BTreeMap, HashSet};
use std::net::Ipv6Addr;
use std::sync::Arc;
use std::time::Duration;

use mobility_proto::gateway::{self, Dropped, Gateway, Output};
use mobility_proto::inner::Inner;
use mobility_proto::wire::{BindingLifetime, Ipv6Prefix, TransientLifetime};
use tokio::sync::{broadcast, mpsc, oneshot};
use tokio::task::AbortHandle;
use tokio::time::Instant;

pub use mobility_proto::gateway::{Grant, Happened};

use crate::advertise::Router;
use crate::agent::{AgentError, Ends, Orders, opening, packet_of, send_signalling, sleep_until, unix_ns};
use crate::links::Links;
use crate::plane::{Plane, Side};
use crate::raw::RawSocket;

/// How long packets of the new way wait for the end of the old one: longer than any delay between platforms.
const SETTLE: Duration = Duration::from_millis(500);
/// Anybody can send to addresses that no guest has.
const MAX_NEIGHBOURS: usize = 4096;

/// How a gateway is set up.
#[derive(Debug, Clone)]
pub struct Config {
    /// This platform's address, which is the care-of address of its virtual machines.
    pub address: Ipv6Addr,
    /// The home agent's address.
    pub anchor: Ipv6Addr,
    /// The tunnel interface's name, at most 15 bytes.
    pub interface: String,
    /// How many bytes may wait for one virtual machine that is on its way: 1 Gb/s for 300 ms are 37.5 MB.
    pub buffer_bytes: usize,
}

/// What has happened to a virtual machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Event {
    /// Its identifier.
    pub node: String,
    /// What.
    pub happened: Happened,
}

/// The link between a virtual machine and its gateway.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Link {
    /// The interface on the platform's side. It may not exist before the machine does.
    pub interface: String,
    /// The machine's prefix.
    pub prefix: Ipv6Prefix,
    /// The machine's link-layer address. Without it the kernel asks for it, and the first packets wait.
    pub link_layer: Option<[u8; 6]>,
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
    End(oneshot::Sender<()>),
}

/// A running gateway. [`end`](Self::end) takes back what it told the kernel; so does the next start after a crash.
#[derive(Debug, Clone)]
pub struct AccessGateway {
    orders: Orders<Command>,
    events: broadcast::Sender<Event>,
}

impl AccessGateway {
    /// Starts it, after removing what a crash has left.
    ///
    /// # Errors
    /// [`AgentError`].
    pub async fn start(config: Config) -> Result<Self, AgentError> {
        let Ends { links, signalling, plane, index } = Ends::open(config.address, &config.interface).await?;
        links.clear().await?;
        links.attach_tunnel(&config.interface, index).await?;
        let gateway = Gateway::new(gateway::Config {
            address: config.address,
            anchor: config.anchor,
            lifetime: BindingLifetime::from_secs(300),
            transient: TransientLifetime::from_ms(10_000),
            buffer_bytes: config.buffer_bytes,
            settle: SETTLE,
        });
        let (commands, inbox) = mpsc::channel(64);
        let (events, _) = broadcast::channel(256);
        let agent = Agent {
            address: config.address,
            gateway,
            signalling,
            plane,
            links,
            guests: BTreeMap::new(),
            neighbours: HashSet::new(),
            events: events.clone(),
            start: Instant::now(),
        };
        tokio::spawn(agent.run(inbox));
        Ok(Self { orders: Orders(commands), events })
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
    task: AbortHandle,
}

impl Drop for Guest {
    fn drop(&mut self) {
        self.task.abort();
    }
}

struct Agent {
    address: Ipv6Addr,
    gateway: Gateway,
    signalling: RawSocket,
    plane: Plane,
    links: Links,
    guests: BTreeMap<String, Guest>,
    /// Guests' addresses that the kernel has been told of.
    neighbours: HashSet<Ipv6Addr>,
    events: broadcast::Sender<Event>,
    start: Instant,
}

impl Agent {
    async fn run(mut self, mut inbox: mpsc::Receiver<Command>) {
        let mut buffer = vec![0; 4096];
        let ended = loop {
            let deadline = self.gateway.deadline().map(|deadline| self.start + deadline);
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
            self.gateway.handle_timeout(self.start.elapsed(), unix_ns());
            self.drain().await;
        };
        self.guests.clear();
        if let Err(error) = self.links.clear().await {
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
            Command::End(_) => {}
        }
    }

    async fn attach(&mut self, node: String, link: Link) -> Result<(), AgentError> {
        let index = self.links.attach_guest(&link.interface, link.prefix).await?;
        let refused: Vec<_> = self.guests.values().map(|guest| guest.index).chain([index]).collect();
        self.refuse_from(&refused)?;
        let what = format!("a socket for router advertisements on {}", link.interface);
        let router = Router::open(index, link.prefix).map_err(opening(&what))?;
        let router = Arc::new(router);
        let task = tokio::spawn(router.clone().run()).abort_handle();
        self.neighbours.retain(|address| !link.prefix.contains(*address));
        self.guests.insert(node, Guest { link, index, router, task });
        Ok(())
    }

    async fn detach(&mut self, node: &str) {
        let Some(guest) = self.guests.remove(node) else { return };
        let Link { interface, prefix, .. } = &guest.link;
        self.neighbours.retain(|address| !prefix.contains(*address));
        if let Err(error) = self.links.detach_guest(interface, *prefix).await {
            tracing::warn!("the link to {node} could not be taken back: {error}");
        }
        let refused: Vec<_> = self.guests.values().map(|guest| guest.index).collect();
        if let Err(error) = self.refuse_from(&refused) {
            tracing::warn!("{error}");
        }
    }

    /// No guest speaks for a gateway or the home agent.
    fn refuse_from(&self, interfaces: &[u32]) -> Result<(), AgentError> {
        let refused =
            self.signalling.refuse_from(interfaces).and_then(|()| self.plane.refuse_from(interfaces));
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
        let guest = self.guests.values().find(|guest| guest.link.prefix.contains(destination));
        let Some((guest, link_layer)) = guest.and_then(|guest| Some((guest, guest.link.link_layer?))) else {
            return;
        };
        if let Err(error) = self.links.neighbour(guest.index, destination, link_layer).await {
            tracing::debug!("{error}");
        }
    }

    fn pass(&mut self, side: Side) {
        let now = self.start.elapsed();
        match side {
            Side::Kernel(count) => {
                let Self { plane, gateway, .. } = self;
                plane.taken(count).for_each(|packet| gateway.handle_guest(packet.to_vec()));
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
                Output::Send(packet) => send_signalling(&self.signalling, &packet),
                Output::Tunnel { to, packet } => self.plane.send(to, &packet),
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
                Output::Event { node, happened } => {
                    let node = String::from_utf8_lossy(&node).into_owned();
                    // Nobody may be listening.
                    let _ = self.events.send(Event { node, happened });
                }
            }
        }
        self.plane.flush().await;
        self.gateway.delivered(self.start.elapsed());
    }
}
