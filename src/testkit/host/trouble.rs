//! Failures on demand, and actions of other users and of dead runs.

use super::{SimHost, backup_job};
use crate::host::ActiveJob;
use crate::model::stop::Stop;

impl SimHost {
    /// Makes the removal of the checkpoint and the bitmaps with this name fail; `None` ends this.
    pub fn fail_removal_of(&self, name: Option<&str>) {
        self.state().fail_removal_of = name.map(str::to_owned);
    }

    /// Makes reads fail after this many bytes of a disk, in jobs that begin from now on; `None`
    /// ends this.
    pub fn fail_reads_after(&self, bytes: Option<u64>) {
        self.state().fail_reads_after = bytes;
    }

    /// Sets whether beginning a job fails.
    pub fn fail_begin(&self, fail: bool) {
        self.state().fail_begin = fail;
    }

    /// Sets whether the daemon becomes unavailable as soon as a job has begun: ending the job
    /// fails, and so does looking for active jobs.
    pub fn fail_end(&self, fail: bool) {
        self.state().fail_end = fail;
    }

    /// Lets the user ask to stop while the next job is being begun.
    pub fn stop_in_begin(&self, stop: &Stop) {
        self.state().stop_in_begin = Some(stop.clone());
    }

    /// Makes the hypervisor too old for checkpoints, for this reason.
    pub fn forget_checkpoints(&self, reason: &str) {
        self.state().no_incremental = Some(reason.to_owned());
    }

    /// Puts the hypervisor on another machine: the bitmaps of shut-off domains cannot be read.
    pub fn move_away(&self) {
        self.state().is_elsewhere = true;
    }

    /// Makes the images of a disk impossible to open.
    pub fn lose_disk(&self, domain: &str, target: &str) {
        let lost = (domain.to_owned(), target.to_owned());
        self.state().unreachable.insert(lost);
    }

    /// Saves the memory of a shut-off domain.
    pub fn save_memory(&self, domain: &str) {
        self.state().saved_memory.insert(domain.to_owned());
    }

    /// Cuts the power of the hypervisor's machine: no job survives, and every bitmap of an active
    /// domain is broken. So is every bitmap of a domain whose disks are open for writing.
    pub fn lose_power(&self) {
        for found in self.state().domains.values_mut() {
            found.job = None;
            if std::mem::take(&mut found.is_rewritten) || found.domain.state.is_active() {
                for disk in found.disks.values_mut() {
                    for name in disk.bitmap_names() {
                        disk.remove_bitmap(&name);
                    }
                }
            }
        }
    }

    /// Simulates the traces of a run that was killed: its job, and its checkpoint on all disks.
    pub fn leave_job(&self, name: &str, socket: &str, checkpoint: &str, mark: &str) {
        let mut state = self.state();
        state.clock += 1;
        let created = state.clock;
        let Some(found) = state.domains.get_mut(name) else {
            return;
        };
        found.job = Some(backup_job(socket.into()));
        found.add_checkpoint(checkpoint, created, mark);
    }

    /// Leaves the next call that begins a job without an answer.
    pub fn begin_late(&self) {
        self.state().begin_late = true;
    }

    /// Lets the next call that begins a job fail in the middle, with nothing undone.
    ///
    /// For an active domain the daemon dies: the bitmaps are made, but the checkpoint is not
    /// recorded. For a shut-off domain `qemu-nbd` fails after the checkpoint is recorded.
    pub fn begin_half(&self) {
        self.state().begin_half = true;
    }

    /// Begins the job whose caller has stopped waiting.
    pub fn begin_now(&self) {
        let late = self.state().late.take();
        if let Some((name, request)) = late
            && let (Some(socket), Some(made)) = (request.places.sockets.first(), &request.checkpoint)
        {
            self.leave_job(&name, &socket.to_string_lossy(), &made.name, &made.mark);
        }
    }

    /// Begins a job of another user.
    pub fn begin_foreign_job(&self, name: &str) {
        if let Some(found) = self.state().domains.get_mut(name) {
            found.job = Some(backup_job("/run/somebody/else.sock".into()));
        }
    }

    /// Begins a migration of the domain by another user.
    pub fn begin_migration(&self, name: &str) {
        if let Some(found) = self.state().domains.get_mut(name) {
            found.job = Some(ActiveJob {
                operation: "outgoing migration".to_owned(),
                socket: None,
            });
        }
    }

    /// Renames a checkpoint and its bitmaps, for example to a name that an earlier version gave.
    pub fn rename_checkpoint(&self, domain: &str, from: &str, to: &str) {
        if let Some(found) = self.state().domains.get_mut(domain) {
            found
                .disks
                .values_mut()
                .for_each(|disk| disk.rename_bitmap(from, to));
            let mut checkpoints = found.checkpoints.iter_mut();
            if let Some(checkpoint) = checkpoints.find(|checkpoint| checkpoint.id.name == from) {
                checkpoint.id.name = to.to_owned();
            }
        }
    }

    /// Makes a checkpoint of another user on all disks.
    pub fn make_foreign_checkpoint(&self, domain: &str, name: &str) {
        let mut state = self.state();
        state.clock += 1;
        let created = state.clock;
        if let Some(found) = state.domains.get_mut(domain) {
            found.add_checkpoint(name, created, "not ours");
        }
    }
}
