#include "kvfs/progress.h"

#include <pthread.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <time.h>
#include <unistd.h>

#include "format/base/clock.h"
#include "format/base/log.h"
#include "kvfs/term.h"

enum { BAR_MS = 100, LINE_MS = 10000, RATE_MS = 5000, SAMPLES = 32 };

static struct {
    pthread_mutex_t lock;
    bool on, shown, tty, quiet;
    uint64_t total, done;
    int64_t start_ms, drawn_ms;
    char item[256];
    /* Recent points of (time, bytes), so that the rate is that of the last seconds. */
    struct {
        int64_t ms;
        uint64_t done;
    } samples[SAMPLES];
    unsigned next_sample;
} bar = {.lock = PTHREAD_MUTEX_INITIALIZER};

static volatile sig_atomic_t stop;

static void on_signal(int sig)
{
    (void)sig;
    stop = 1;
}

static size_t columns(void)
{
    struct winsize w;
    return ioctl(STDERR_FILENO, TIOCGWINSZ, &w) == 0 && w.ws_col >= 20 ? w.ws_col : 80;
}

static void hide(void)
{
    if (bar.shown) {
        (void)fputs("\r\033[K", stderr);
        (void)fflush(stderr);
        bar.shown = false;
    }
}

/* Bytes a second: of the last seconds, as far back as the samples go. */
static double rate(int64_t now)
{
    int64_t since = bar.start_ms;
    uint64_t from = 0;
    for (unsigned i = 0; i < SAMPLES; i++) {
        int64_t at = bar.samples[i].ms;
        if (at > since && now - at >= RATE_MS) {
            since = at;
            from = bar.samples[i].done;
        }
    }
    return now > since ? (double)(bar.done - from) * 1000 / (double)(now - since) : 0;
}

static void sample(int64_t now)
{
    unsigned last = (bar.next_sample + SAMPLES - 1) % SAMPLES;
    if (now - bar.samples[last].ms >= RATE_MS / 8) {
        bar.samples[bar.next_sample].ms = now;
        bar.samples[bar.next_sample].done = bar.done;
        bar.next_sample = (bar.next_sample + 1) % SAMPLES;
    }
}

static void put_time(struct ct_buf *out, double seconds)
{
    uint64_t s = seconds < 359999 ? (uint64_t)seconds + 1 : 359999;
    if (s >= 3600) {
        ct_buf_printf(out, "%llu:%02llu:%02llu", (unsigned long long)(s / 3600),
                      (unsigned long long)(s / 60 % 60), (unsigned long long)(s % 60));
    } else {
        ct_buf_printf(out, "%llu:%02llu", (unsigned long long)(s / 60),
                      (unsigned long long)(s % 60));
    }
}

static void put_numbers(struct ct_buf *out, int64_t now)
{
    char done[KVFS_SIZE_TEXT];
    char total[KVFS_SIZE_TEXT];
    char speed[KVFS_SIZE_TEXT];
    double r = rate(now);
    ct_buf_printf(out, "%s of %s  %s/s", kvfs_size_text(done, bar.done),
                  kvfs_size_text(total, bar.total), kvfs_size_text(speed, (uint64_t)r));
    if (r > 0 && bar.done < bar.total && now - bar.start_ms >= 500) {
        ct_buf_puts(out, "  ETA ");
        put_time(out, (double)(bar.total - bar.done) / r);
    }
}

/* Cuts what does not fit after n columns, at a character's border. */
static size_t cut(const char *text, size_t len, size_t n)
{
    size_t i = 0;
    for (; i < len; i++) {
        if (((unsigned char)text[i] & 0xc0) != 0x80 && n-- == 0) {
            break;
        }
    }
    return i;
}

static void draw_bar(int64_t now)
{
    enum { WIDTH = 20, NAME_MIN = 16 };
    ct_autobuf line = {0};
    double part = bar.total ? (double)bar.done / (double)bar.total : 1;
    part = part > 1 ? 1 : part;
    ct_buf_printf(&line, "%3d%% [", (int)(part * 100));
    int full = (int)(part * WIDTH);
    for (int i = 0; i < WIDTH; i++) {
        ct_buf_putc(&line, i < full ? '#' : i == full ? '>' : ' ');
    }
    ct_buf_puts(&line, "] ");
    put_numbers(&line, now);
    size_t room = columns() - 1;
    if (line.len + 2 + NAME_MIN <= room) {
        ct_buf_puts(&line, "  ");
        kvfs_put_safe(&line, bar.item, strlen(bar.item));
    }
    if (!line.failed) {
        size_t n = cut((const char *)line.data, line.len, room);
        (void)fprintf(stderr, "\r%.*s\033[K", (int)n, (const char *)line.data);
        (void)fflush(stderr);
        bar.shown = true;
    }
}

static void draw_line(int64_t now)
{
    ct_autobuf line = {0};
    ct_buf_printf(&line, "%3d%%  ",
                  bar.total ? (int)((double)bar.done * 100 / (double)bar.total) : 100);
    put_numbers(&line, now);
    if (!line.failed) {
        (void)fprintf(stderr, "%.*s\n", (int)line.len, (const char *)line.data);
    }
}

static void draw(int64_t now)
{
    sample(now);
    if (bar.quiet || now - bar.drawn_ms < (bar.tty ? BAR_MS : LINE_MS)) {
        return;
    }
    bar.drawn_ms = now;
    if (bar.tty) {
        draw_bar(now);
    } else {
        draw_line(now);
    }
}

/* Log lines that come while the bar stands. */
static void log_above_bar(void *ctx, enum ct_level level, const char *line)
{
    (void)ctx;
    pthread_mutex_lock(&bar.lock);
    hide();
    ct_log_to_stderr(level, line);
    pthread_mutex_unlock(&bar.lock);
}

void kvfs_progress_start(uint64_t total, bool quiet)
{
    struct sigaction sa = {.sa_handler = on_signal, .sa_flags = (int)SA_RESETHAND};
    (void)sigemptyset(&sa.sa_mask);
    (void)sigaction(SIGINT, &sa, NULL);
    (void)sigaction(SIGTERM, &sa, NULL);
    (void)sigaction(SIGHUP, &sa, NULL);
    const char *term = getenv("TERM");
    bar.tty = isatty(STDERR_FILENO) && term && strcmp(term, "dumb") != 0;
    bar.on = true;
    bar.quiet = quiet;
    bar.total = total;
    bar.done = 0;
    bar.start_ms = ct_now_ms();
    bar.drawn_ms = bar.start_ms;
    ct_log_set_sink(log_above_bar, NULL);
}

void kvfs_progress_item(const char *name)
{
    pthread_mutex_lock(&bar.lock);
    (void)snprintf(bar.item, sizeof(bar.item), "%s", name);
    pthread_mutex_unlock(&bar.lock);
}

int kvfs_progress_add(void *ctx, uint64_t bytes)
{
    (void)ctx;
    pthread_mutex_lock(&bar.lock);
    bar.done += bytes;
    draw(ct_now_ms());
    pthread_mutex_unlock(&bar.lock);
    return stop != 0;
}

bool kvfs_interrupted(void)
{
    return stop != 0;
}

int kvfs_check_interrupted(struct ct_err *err)
{
    return stop ? ct_err_set(err, CT_BUSY, "interrupted") : 0;
}

void kvfs_progress_hide(void)
{
    pthread_mutex_lock(&bar.lock);
    hide();
    pthread_mutex_unlock(&bar.lock);
}

void kvfs_progress_line(const char *fmt, ...)
{
    char *text = NULL;
    va_list ap;
    va_start(ap, fmt);
    int n = vasprintf(&text, fmt, ap);
    va_end(ap);
    if (n < 0) {
        return;
    }
    pthread_mutex_lock(&bar.lock);
    hide();
    kvfs_print_safe(stdout, text, (size_t)n);
    (void)fputc('\n', stdout);
    (void)fflush(stdout);
    pthread_mutex_unlock(&bar.lock);
    free(text);
}

double kvfs_progress_end(void)
{
    if (!bar.on) {
        return 0;
    }
    hide();
    bar.on = false;
    ct_log_set_sink(NULL, NULL);
    return (double)(ct_now_ms() - bar.start_ms) / 1000;
}
