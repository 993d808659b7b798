#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "format/base/log.h"
#include "kvfs/kvfs.h"
#include "kvfs/mount/guarding.h"
#include "kvfs/mount/keys_in.h"
#include "kvfs/mount/logsink.h"
#include "kvfs/mount/place.h"
#include "kvfs/mount/seen.h"
#include "kvfs/mount/supervisor.h"
#include "kvfs/term.h"

static bool is_helper(const char *name)
{
    const char *slash = strrchr(name, '/');
    return strcmp(slash ? slash + 1 : name, KVFS_MOUNT_HELPER) == 0;
}

static int open_key_dir(struct kvfs_mount_options *o, struct ct_err *err)
{
    const char *given = o->keys.key_dir;
    if (!given) {
        return -1;
    }
    o->keys.key_dir = realpath(given, NULL);
    int fd = o->keys.key_dir ? open(given, O_PATH | O_DIRECTORY | O_CLOEXEC) : -1;
    if (fd < 0) {
        ct_err_sys(err, errno, "key directory %s", given);
    }
    return fd;
}

static int open_keys(const struct kvfs_mount_options *o, struct kvfs_job *job, int env_keys,
                     int env_deploy, struct ct_err *err)
{
    if (!*o->config.server) {
        if (env_deploy >= 0) {
            close(env_deploy);
        }
        return kvfs_keys_open(&o->keys, env_keys, job->keys, err);
    }
    if (env_keys >= 0) {
        return ct_err_set(err, CT_USAGE,
                          KVFS_KEYS_ENV " is set: keys come from the server or from there");
    }
    job->ca_fd = o->ca ? open(o->ca, O_RDONLY | O_CLOEXEC) : -1;
    if (o->ca && job->ca_fd < 0) {
        return ct_err_sys(err, errno, "option ca: %s", o->ca);
    }
    job->state_fd = kvfs_seen_open(o->state_dir, err);
    return err->code ? -1 : kvfs_deploy_key_open(o->deploy_key, env_deploy, job->keys, err);
}

static int prepare(struct kvfs_mount_options *o, struct kvfs_job *job, int env_keys, int env_deploy,
                   struct ct_err *err)
{
    if (kvfs_options_complete(o, err)) {
        return -1;
    }
    if (o->warm && *o->config.mounter) {
        return ct_err_set(err, CT_USAGE,
                          "option warm: with a mounter, run kvfs warm where the mount can be seen");
    }
    ct_log_set_level((enum ct_level)o->config.log_level);
    job->source_fd = kvfs_place_source(&o->config, err);
    if (job->source_fd < 0 || kvfs_place_mountpoint(&o->config, o->nonempty, err) ||
        open_keys(o, job, env_keys, env_deploy, err)) {
        return -1;
    }
    if (kvfs_guarding_load(o->guard, &job->profile, &o->config, job->measured, &job->measured_count,
                           err)) {
        return ct_err_wrap(err, "option guard");
    }
    if (o->config.audit && !o->fake &&
        !(job->audit = kvfs_audit_file_open(o->audit_file, o->audit_log, err))) {
        return -1;
    }
    job->key_dir_fd = open_key_dir(o, err);
    if (o->keys.key_dir && job->key_dir_fd < 0) {
        return -1;
    }
    return kvfs_logsink_open(o->log_file, o->config.foreground, o->config.mountpoint, err);
}

static int fail(const struct ct_err *err)
{
    (void)kvfs_complain("mount", err);
    return err->code == CT_USAGE ? KVFS_USAGE : KVFS_FAILED;
}

int cmd_mount(int argc, char **argv)
{
    static struct kvfs_mount_options options;
    static struct kvfs_key_files keys;
    static struct kvfs_job job; /* large */
    job = (struct kvfs_job){.options = &options,
                            .source_fd = -1,
                            .key_dir_fd = -1,
                            .ca_fd = -1,
                            .state_fd = -1,
                            .keys = &keys};
    struct ct_err err = CT_ERR_INIT;
    kvfs_no_core();
    int env_keys = kvfs_keys_from_env(KVFS_KEYS_ENV, &err);
    int env_deploy = kvfs_keys_from_env(KVFS_DEPLOY_KEY_ENV, &err);
    if (env_keys == -2 || env_deploy == -2) {
        return fail(&err);
    }
    if (!is_helper(argv[0])) {
        kvfs_options_parse(&options, argc, argv);
    } else if (kvfs_options_parse_helper(&options, argc, argv, &err)) {
        return fail(&err);
    }
    if (prepare(&options, &job, env_keys, env_deploy, &err)) {
        return fail(&err);
    }
    return options.fake ? KVFS_DONE : kvfs_supervise(&job);
}
