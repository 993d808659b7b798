#include "guard/checks.h"

#include <string.h>

/* guard/README.md has the same names, and tests compare. */
const struct guard_check_info guard_checks[GUARD_IDS] = {
    [GUARD_ROOT_RO] = {"root-ro",
                       "The root file system is mounted read-only, by the option of the mount.",
                       "Start the container with a read-only root (--read-only).",
                       "A file system that the host writes to underneath.",
                       {true, true}},
    [GUARD_MOUNT_FOREIGN] =
        {"mount-foreign",
         "Everything that is mounted is known: the runtime's own, the source, kvfs's "
         "mount, and what the profile declares.",
         "Take the mount away, or declare it in the profile (bind, tmpfs).",
         "What a mount that is declared holds.",
         {true, true}},
    [GUARD_MOUNT_FLAGS] =
        {"mount-flags",
         "What can be written to is nosuid, nodev and, unless it is a declared tmpfs, "
         "noexec; the source is nodev.",
         "Mount it with these options.",
         "/dev itself, its nodes and /proc, which are the runtime's; the root, which "
         "root-ro is about.",
         {true, true}},
    [GUARD_MOUNT_STACKED] = {"mount-stacked",
                             "No mount lies over another one.",
                             "Unmount what was mounted on top.",
                             "An overmount that only another mount namespace sees.",
                             {true, true}},
    [GUARD_MOUNT_PATH] =
        {"mount-path",
         "Mounts at or above the source, the mount point, protected directories and "
         "trees, and beneath the first two and trees, are those of the start.",
         "Find out who mounted there, and start anew.",
         "A mount in another mount namespace; the reader's own is judged by itself.",
         {true, false}},
    [GUARD_MOUNT_OWN] = {"mount-own",
                         "The mount point leads to kvfs's own mount, whole, read-only, nosuid and "
                         "nodev.",
                         "Find out who mounted there, and start anew.",
                         "Nothing before kvfs has mounted, nor that it was unmounted, which is the "
                         "end of it; the mount is told by its device number.",
                         {true, false}},
    [GUARD_MOUNT_EVENT] =
        {"mount-event",
         "Since the start, nobody touched the mount table, ours or a reader's, even "
         "for a moment.",
         "Find out who mounts in this container, and start anew.",
         "Changes of propagation, and of a superblock from another namespace: the "
         "kernel tells of neither.",
         {true, false}},
    [GUARD_SOURCE_RO] = {"source-ro",
                         "The source lies on a mount that is read-only.",
                         "Bind the source read-only (-v SRC:SRC:ro).",
                         "The same directory, mounted elsewhere in a way that can be written to.",
                         {true, false}},
    [GUARD_KERNEL_WRITABLE] =
        {"kernel-writable",
         "/sys and /proc/sys are read-only.",
         "Run the container without --privileged.",
         "Files elsewhere in /proc that take writes; the container's user must not be "
         "root.",
         {true, true}},
    [GUARD_WRITE_PROBE] =
        {"write-probe",
         "In each protected directory, a file can't be made because the mount is "
         "read-only (EROFS).",
         "Mount it read-only; an ordinary user's missing permission is not enough.",
         "Whether an existing file could be changed; directories beneath with mounts "
         "of their own.",
         {true, false}},
    [GUARD_CAPABILITIES] = {"capabilities",
                            "All capability sets are empty, the bounding set too.",
                            "Start the container with --cap-drop ALL.",
                            "A file with capabilities that another process runs.",
                            {true, true}},
    [GUARD_NO_NEW_PRIVS] = {"no-new-privs",
                            "No program can give more privileges (no_new_privs).",
                            "Start the container with --security-opt no-new-privileges.",
                            "Threads other than the first.",
                            {true, true}},
    [GUARD_SECCOMP] = {"seccomp",
                       "A seccomp filter is in force.",
                       "Start the container with the runtime's default filter.",
                       "What the filter allows.",
                       {true, true}},
    [GUARD_UID] = {"uid",
                   "User and group ids are not 0, and do not change.",
                   "Start the container with --user UID:GID.",
                   "Where a user namespace is used, who this is on the host.",
                   {true, true}},
    [GUARD_TRACER] = {"tracer",
                      "Nobody traces the process, or one of its threads.",
                      "End the debugger, and start anew.",
                      "A tracer outside the PID namespace (tracer-outside), and reads of memory "
                      "without tracing. Threads of readers but the first: looked at when they are "
                      "admitted, and every tenth time.",
                      {true, true}},
    [GUARD_TRACER_OUTSIDE] =
        {"tracer-outside",
         "Nobody outside the PID namespace traces the process: a child could.",
         "End the debugger on the host, and start anew.",
         "A process that is not dumpable and without CAP_SYS_PTRACE, or whose children "
         "may not trace (Yama, seccomp); a tracer that follows forks; looked at every "
         "tenth time.",
         {true, false}},
    [GUARD_DUMPABLE] = {"dumpable",
                        "The process is not dumpable, so that its own user can't read its memory.",
                        "This is a fault of kvfs.",
                        "Host root reads it all the same.",
                        {true, false}},
    [GUARD_CORE_LIMIT] = {"core-limit",
                          "No core file may be written (RLIMIT_CORE 0).",
                          "Start it with --ulimit core=0.",
                          "A piped core pattern is not bound by the limit.",
                          {true, true}},
    [GUARD_CORE_PATTERN] = {"core-pattern",
                            "Cores are not handed to a program, by pipe or socket: the limit does "
                            "not stop those, and a reader's core holds plaintext.",
                            "Set kernel.core_pattern on the host to a file name.",
                            "A user mode helper that is set up otherwise.",
                            {true, false}},
    [GUARD_LD_PRELOAD] = {"ld-preload",
                          "LD_PRELOAD, LD_AUDIT and /etc/ld.so.preload are not used.",
                          "Start it without.",
                          "An environment that the process changed itself: a hint.",
                          {true, true}},
    [GUARD_LD_LIBRARY_PATH] =
        {"ld-library-path",
         "LD_LIBRARY_PATH is not set.",
         "Start it without, or ignore this in the profile where images need it.",
         "An environment that the process changed itself: a hint.",
         {true, true}},
    [GUARD_MAPPED_WRITABLE] = {"mapped-writable",
                               "No code is mapped from a file on a writable mount.",
                               "Put programs and libraries on read-only mounts.",
                               "Code that is read and interpreted instead of mapped.",
                               {true, true}},
    [GUARD_MAPPED_MEMORY] =
        {"mapped-memory",
         "No code lies in memory without a file (memfd, shared memory).",
         "Find out what put it there; a just-in-time compiler needs this ignored in "
         "the profile.",
         "Code that is mapped only between two looks.",
         {true, true}},
    [GUARD_MAPPED_DELETED] = {"mapped-deleted",
                              "No code is mapped from a deleted file.",
                              "Start it anew.",
                              "Code that is mapped only between two looks.",
                              {true, true}},
    [GUARD_MAPPED_RWX] =
        {"mapped-rwx",
         "No memory can be written and executed at once, and there is no code in "
         "anonymous memory.",
         "Find out what needs it; a just-in-time compiler needs this ignored in the "
         "profile.",
         "Memory that is one after the other.",
         {true, true}},
    [GUARD_MAPPED_NEW] = {"mapped-new",
                          "No code was mapped into kvfs after the start.",
                          "Find out what loaded it, and start anew.",
                          "Code that is mapped only between two looks.",
                          {true, false}},
    [GUARD_MAPPED_CHANGED] =
        {"mapped-changed",
         "Files of which kvfs maps code were not written to.",
         "Start anew from an image that is as it was measured.",
         "A write that leaves size and times alone (the host's root can); paging in "
         "from a disk that was altered.",
         {true, false}},
    [GUARD_TEXT_ALTERED] =
        {"text-altered",
         "No page of kvfs's code was altered in memory (by a debugger, /proc/PID/mem, "
         "a uprobe).",
         "End whatever patches or probes it, and start anew.",
         "Kernel code, hardware breakpoints, jumps from data; other processes where "
         "/proc/PID/pagemap can't be read.",
         {true, false}},
    [GUARD_EXE_REPLACED] =
        {"exe-replaced",
         "The program is the file that lies at its path, and is unchanged; kvfs's is "
         "that of the start.",
         "Start it anew.",
         "A file system whose device and inode numbers are not stable.",
         {true, true}},
    [GUARD_TREE_CHANGED] =
        {"tree-changed",
         "The trees that the profile names are as they were at the start (names, "
         "sizes, inodes, times).",
         "Start anew from an image that is as it was measured.",
         "Writes by the host that leave size and times alone; looked at every tenth "
         "time.",
         {true, false}},
    [GUARD_STOPPED] = {"stopped",
                       "No process of kvfs is stopped.",
                       "Find out who stopped it, and start anew.",
                       "Being stopped between two looks; the guard's own process (paused).",
                       {true, false}},
    [GUARD_BPF_UNPRIVILEGED] = {"bpf-unprivileged",
                                "Ordinary users can't load eBPF programs.",
                                "Set kernel.unprivileged_bpf_disabled to 1 or 2 on the host.",
                                "What privileged users load.",
                                {true, false}},
    [GUARD_BPF_CAPABLE] = {"bpf-capable",
                           "It can neither load eBPF programs nor trace (CAP_BPF, CAP_PERFMON, "
                           "CAP_SYS_ADMIN, CAP_SYS_PTRACE).",
                           "Start the container with --cap-drop ALL.",
                           "Others on the host who can.",
                           {true, true}},
    [GUARD_BPF_PROGRAMS] =
        {"bpf-programs",
         "No eBPF program that traces is loaded.",
         "Unload it (bpftool prog list), and start anew.",
         "Everything without CAP_SYS_ADMIN in the first user namespace, as in every "
         "hardened container; which process a program watches.",
         {true, false}},
    [GUARD_NAMESPACES] = {"namespaces",
                          "All namespaces are those of the start.",
                          "Find out who moved it, and start anew.",
                          "Others that enter the same namespaces.",
                          {true, true}},
    [GUARD_HOST_NAMESPACES] =
        {"host-namespaces",
         "PID, IPC and UTS namespace are not the host's.",
         "Start the container without --pid host, --ipc host, --uts host.",
         "The host's network, user and mount namespaces have no number by which they "
         "could be told.",
         {true, true}},
    [GUARD_DEVICES] = {"devices",
                       "/dev has no device nodes but harmless ones and those that the profile "
                       "declares.",
                       "Start the container without --privileged and --device, or declare the "
                       "device.",
                       "Nodes outside /dev, which nodev makes useless; what the device cgroup "
                       "allows.",
                       {true, true}},
    [GUARD_RUNTIME_SOCKET] =
        {"runtime-socket",
         "No container runtime's socket can be reached.",
         "Start the container without that mount.",
         "Sockets under a name of their own in a directory that is mounted; those in "
         "the network.",
         {true, true}},
    [GUARD_SWAP] = {"swap",
                    "Memory is not written to swap space: there is none, the cgroup (version 2) "
                    "may use none, or all that holds keys and plaintext is locked (RLIMIT_MEMLOCK "
                    "allowed memory and 64M at the start).",
                    "swapoff -a, or --memory-swap equal to --memory, or more RLIMIT_MEMLOCK.",
                    "Hibernation, and what the hypervisor swaps; memory of readers.",
                    {true, false}},
    [GUARD_MEMLOCK] = {"memlock",
                       "As much memory may be locked as keys need (1 MiB).",
                       "Start it with --ulimit memlock=BYTES.",
                       "How much of it is used already.",
                       {true, false}},
    [GUARD_PROC] = {"proc",
                    "/proc is the process file system that it was at the start.",
                    "Unmount what lies over it, and start anew.",
                    "A kernel that lies.",
                    {true, false}},
    [GUARD_PAUSED] =
        {"paused",
         "Checks came one after the other: the guard was not stopped, frozen or put to "
         "sleep.",
         "Start anew.",
         "Stops that are shorter than `gap`.",
         {true, false}},
    [GUARD_INSPECT] =
        {"inspect",
         "All that the checks need can be read.",
         "Let readers have kvfs's user id, PID namespace and no capabilities of their "
         "own, or run kvfs as root.",
         "Whoever can't be read is not judged where this is ignored, but for what the "
         "profile asks of readers (`admit`).",
         {true, true}},
    [GUARD_READER_UID] = {"reader-uid",
                          "The reader's user is one that the profile admits.",
                          "Run it as an admitted user, or add `admit uid` to the profile.",
                          "Descriptors that it passes on.",
                          {false, true}},
    [GUARD_READER_EXE] =
        {"reader-exe",
         "The reader runs a program that the profile admits, by path and digest.",
         "Run an admitted program, or add `admit exe` to the profile.",
         "What an admitted program is told to do: for an interpreter, admit its tree "
         "too.",
         {false, true}},
    [GUARD_READER_TREE] =
        {"reader-tree",
         "The code that the reader is run with is an admitted tree, unchanged.",
         "Run a file of an admitted tree, without PYTHONPATH and the like, or add "
         "`admit tree` to the profile.",
         "The command line is the process's own word: a hint. Code that it gets "
         "elsewhere later.",
         {false, true}},
    [GUARD_READER_PIN] =
        {"reader-pin",
         "The reader is in the mount and PID namespace and the cgroup of the first "
         "reader.",
         "Give each container a mount of its own.",
         "Others who enter both.",
         {false, true}},
};

int guard_check_named(const char *name)
{
    for (int i = 0; i < GUARD_IDS; i++) {
        if (strcmp(guard_checks[i].name, name) == 0) {
            return i;
        }
    }
    return -1;
}
