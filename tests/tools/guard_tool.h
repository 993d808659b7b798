/* The parts of guard_tool. */
#ifndef GUARD_TOOL_H
#define GUARD_TOOL_H

#include <sys/types.h>

/* Answers lines until stdin ends. */
int guard_tool_idle(void);
/* `read FILE`: goes on as idle(), beside a child that reads. */
int guard_tool_read(const char *path);
/* `inject PID DEED`: makes system calls in another process, and lets it go. */
int guard_tool_inject(pid_t pid, const char *deed);

#endif
