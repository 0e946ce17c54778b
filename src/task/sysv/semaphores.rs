//! Semaphore sets of the dead kernel: their values, and what ends of processes undo.

use super::super::extract::Extraction;
use super::super::list::int;
use super::{Finder, SEMAPHORES, Tie, pid_of};
use crate::dataset::{Semaphore, SemaphoreUndo, SysvKind};
use crate::kernel::{KernelError, Object, containers};

/// More semaphores than SEMMSL lets a set have where nobody raised it by far.
const MOST_SEMAPHORES: u64 = 1 << 18;

/// PID_MAX_LIMIT: as many tasks there can be.
const MOST_SLEEPERS: usize = 4 << 20;

/// More changes on processes' ends than a host of that many processes has.
const MOST_ADJUSTMENTS: usize = 1 << 24;

/// Tasks that wait for a set's semaphores.
pub(super) fn sleepers(set: &Object<'_>) -> Result<Vec<u64>, KernelError> {
    let mut heads = vec![set.get("pending_alter")?, set.get("pending_const")?];
    let semaphores = set.get("sems")?;
    for number in 0..count(set)? {
        let one = semaphores.element(number)?;
        heads.push(one.get("pending_alter")?);
        heads.push(one.get("pending_const")?);
    }
    let mut sleepers = Vec::new();
    for head in heads {
        for waiting in containers::list(&head, "sem_queue", "list")? {
            sleepers.push(waiting.ptr("sleeper")?);
        }
        if sleepers.len() > MOST_SLEEPERS {
            return Err(KernelError::Damaged {
                what: "sem_array",
                addr: set.addr(),
                detail: format!("more than {MOST_SLEEPERS} tasks wait for it"),
            });
        }
    }
    Ok(sleepers)
}

fn count(set: &Object<'_>) -> Result<u64, KernelError> {
    let count = set.u("sem_nsems")?;
    if count > MOST_SEMAPHORES {
        return Err(KernelError::Damaged {
            what: "sem_array",
            addr: set.addr(),
            detail: format!("sem_nsems is {count}"),
        });
    }
    Ok(count)
}

impl<'k> Finder<'k> {
    pub(super) fn semaphores(
        &self,
        x: &mut Extraction<'_, 'k>,
        perm: &Object<'k>,
    ) -> Result<(Tie, Option<SysvKind>), KernelError> {
        let set = perm.container_of("sem_array", "sem_perm")?;
        let semaphores = set.get("sems")?;
        let mut values = Vec::new();
        let mut operated = false;
        for number in 0..count(&set)? {
            let one = semaphores.element(number)?;
            operated |= one.u("sem_otime")? != 0;
            values.push(Semaphore {
                value: int(&one, "semval")?,
                pid: pid_of(&one, "sempid")?,
            });
        }
        let (undo, of_others) = self.undone(&set, values.len())?;
        let pids: Vec<i32> = values.iter().map(|one| one.pid).collect();
        let waited_for = !sleepers(&set)?.is_empty() || !of_others.is_empty();
        let mut tie = self.tie(perm, SEMAPHORES, &pids, waited_for)?;
        if !undo.is_empty() {
            tie = Tie::Used;
        }
        if !matches!(tie, Tie::Used | Tie::Unused) {
            return Ok((tie, None));
        }
        for (number, adjust) in of_others {
            // As at the end of these processes, which are not restored.
            const SEMVMX: i32 = 32767;
            if let Some(one) = values.get_mut(number) {
                one.value = one.value.saturating_add(adjust.into()).clamp(0, SEMVMX);
                x.reconstructed(
                    "host",
                    "System V semaphores",
                    format!(
                        "semaphore {number} of set {} changed by {adjust}: SEM_UNDO of a process \
                         that is not restored",
                        int(perm, "id")?
                    ),
                );
            }
        }
        let kind = SysvKind::Semaphores {
            values,
            undo,
            operated,
        };
        Ok((tie, Some(kind)))
    }

    /// What ends of processes do to a set: of ours, and of others (number, change).
    #[allow(clippy::type_complexity)]
    fn undone(
        &self,
        set: &Object<'_>,
        count: usize,
    ) -> Result<(Vec<SemaphoreUndo>, Vec<(usize, i16)>), KernelError> {
        let (mut ours, mut others) = (Vec::new(), Vec::new());
        let all = containers::list(&set.get("list_id")?, "sem_undo", "list_id")?;
        if all.len().saturating_mul(count) > MOST_ADJUSTMENTS {
            return Err(KernelError::Damaged {
                what: "sem_array",
                addr: set.addr(),
                detail: format!("{} processes would undo {count} semaphores", all.len()),
            });
        }
        for undo in all {
            let owner = self.undo.get(&undo.ptr("ulp")?);
            // A pointer to what is behind it; a flexible array in newer kernels.
            let adjustments = undo.get("semadj")?;
            for number in 0..count {
                let adjust = adjustments.element(number as u64)?.signed()?;
                let adjust = i16::try_from(adjust).unwrap_or(0);
                match (adjust, owner) {
                    (0, _) => {}
                    (_, Some(pid)) => ours.push(SemaphoreUndo {
                        pid: *pid,
                        number: u16::try_from(number).unwrap_or(u16::MAX),
                        adjust,
                    }),
                    (_, None) => others.push((number, adjust)),
                }
            }
        }
        Ok((ours, others))
    }
}
