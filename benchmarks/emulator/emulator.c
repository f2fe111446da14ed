/* A server that streams like vLLM 0.24 and knows the truth: for load that a Python server could not give.
 *
 *   cc -O2 -o emulator emulator.c && ./emulator [-s STEP_US] [-f TTFT_US] [-p PATTERN] [-k DRAFTS] [-l LOG]
 *
 * Prints its port. All streams emit on the ticks of one clock, as the requests of a batch do: every STEP_US
 * each stream sends one event with as many tokens as its place in PATTERN ("2,3" is an acceptance length of
 * 2.5; streams start at different places). The first event comes TTFT_US after the request, on a tick, and
 * has one token. With -s 0 events follow each other as fast as they are taken. Ids come with return_token_ids alone.
 *
 * LOG gets one record per request and event: four little-endian uint32 (first prompt id, request, kind 0 for
 * "request arrived" or 1 for an event, tokens) and a uint64 with the nanoseconds of CLOCK_MONOTONIC: of an event
 * just before the write, of a request when its last bytes reached the socket, as the kernel stamps it, since in
 * a burst of requests they wait there to be read. That is the clock of Python's time.perf_counter_ns on Linux.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/tcp.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <sys/timerfd.h>
#include <time.h>
#include <unistd.h>

#define MOST_FDS 65536
#define MOST_PATTERN 64
#define EVENT_BYTES 1024

typedef struct {
    char *data;
    size_t used, size;
} Buffer;

typedef struct {
    int fd, streaming, close_after, with_ids;
    Buffer in, out;
    uint32_t first_id, request, sent_tokens, max_tokens, place;
    uint64_t due_ns;
    Buffer prompt; /* the ids as the request spelled them, echoed with the first event */
    size_t prompt_tokens;
} Connection;

static uint64_t step_ns = 25000000, ttft_ns = 50000000;
static unsigned pattern[MOST_PATTERN], pattern_length, drafts = 4;
static Connection *connections[MOST_FDS];
static int poller, most_fd;
static FILE *logged;
static uint32_t requests;
static struct {
    uint64_t prompt, output, steps, drafts, drafted, accepted;
    unsigned running;
} totals;

static uint64_t now_ns(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

static void append(Buffer *buffer, const char *data, size_t length) {
    if (buffer->used + length + 1 > buffer->size) {
        buffer->size = (buffer->used + length + 1) * 2;
        buffer->data = realloc(buffer->data, buffer->size);
        if (!buffer->data) abort();
    }
    memcpy(buffer->data + buffer->used, data, length);
    buffer->used += length;
    buffer->data[buffer->used] = 0;
}

static void note(const Connection *c, uint32_t kind, uint32_t tokens, uint64_t at) {
    if (!logged) return;
    uint32_t head[4] = {c->first_id, c->request, kind, tokens};
    fwrite(head, sizeof head, 1, logged);
    fwrite(&at, sizeof at, 1, logged);
}

static void watch(const Connection *c, int writing) {
    struct epoll_event e = {.events = EPOLLIN | (writing ? EPOLLOUT : 0), .data.fd = c->fd};
    epoll_ctl(poller, EPOLL_CTL_MOD, c->fd, &e);
}

static void drop(Connection *c) {
    if (c->streaming) totals.running--;
    connections[c->fd] = NULL;
    close(c->fd);
    free(c->in.data);
    free(c->out.data);
    free(c->prompt.data);
    free(c);
}

/* Returns 0 when the connection is gone. */
static int flush(Connection *c) {
    size_t done = 0;
    while (done < c->out.used) {
        ssize_t n = send(c->fd, c->out.data + done, c->out.used - done, MSG_NOSIGNAL);
        if (n < 0 && errno == EINTR) continue;
        if (n < 0 && errno == EAGAIN) break;
        if (n < 0) {
            drop(c);
            return 0;
        }
        done += (size_t)n;
    }
    if (done < c->out.used) {
        memmove(c->out.data, c->out.data + done, c->out.used - done);
        watch(c, 1);
    } else if (c->out.size) {
        watch(c, 0);
    }
    c->out.used -= done;
    if (!c->out.used && c->close_after) {
        drop(c);
        return 0;
    }
    return 1;
}

static void chunk(Connection *c, const char *data, size_t length) {
    char head[32];
    append(&c->out, head, (size_t)snprintf(head, sizeof head, "%zx\r\n", length));
    append(&c->out, data, length);
    append(&c->out, "\r\n", 2);
}

static int answer(Connection *c, const char *status, const char *kind, const char *body) {
    char head[256];
    int n = snprintf(head, sizeof head, "HTTP/1.1 %s\r\nContent-Type: %s\r\nContent-Length: %zu\r\n\r\n", status, kind,
                     strlen(body));
    append(&c->out, head, (size_t)n);
    append(&c->out, body, strlen(body));
    return flush(c);
}

static void finish(Connection *c) {
    char text[EVENT_BYTES];
    int n = snprintf(text, sizeof text,
                     "data: {\"id\":\"cmpl-%u\",\"object\":\"text_completion\",\"created\":1,\"model\":\"speedbench\","
                     "\"choices\":[],\"usage\":{\"prompt_tokens\":%zu,\"total_tokens\":%zu,\"completion_tokens\":%u,"
                     "\"prompt_tokens_details\":{\"cached_tokens\":0}}}\n\n",
                     c->request, c->prompt_tokens, c->prompt_tokens + c->sent_tokens, c->sent_tokens);
    chunk(c, text, (size_t)n);
    chunk(c, "data: [DONE]\n\n", 14);
    append(&c->out, "0\r\n\r\n", 5);
    totals.running--;
    totals.prompt += c->prompt_tokens;
    totals.output += c->sent_tokens;
    c->streaming = 0;
}

/* One event: the next tokens of a stream. Returns 0 when the connection is gone. */
static int emit(Connection *c) {
    uint32_t wanted = 1;
    if (c->sent_tokens) {
        wanted = pattern[c->place++ % pattern_length];
        totals.steps++;
        if (drafts) {
            totals.drafts++;
            totals.drafted += drafts;
            totals.accepted += wanted - 1;
        }
    }
    uint32_t left = c->max_tokens - c->sent_tokens, tokens = wanted < left ? wanted : left;
    int last = tokens == left;
    Buffer event = {0};
    char text[EVENT_BYTES];
    int n = snprintf(text, sizeof text,
                     "data: {\"id\":\"cmpl-%u\",\"object\":\"text_completion\",\"created\":1,\"model\":\"speedbench\","
                     "\"choices\":[{\"index\":0,\"text\":\"",
                     c->request);
    append(&event, text, (size_t)n);
    for (uint32_t i = 0; i < tokens; i++) append(&event, " tok", 4);
    n = snprintf(text, sizeof text, "\",\"logprobs\":null,\"finish_reason\":%s,\"stop_reason\":null",
                 last ? "\"length\"" : "null");
    append(&event, text, (size_t)n);
    if (c->with_ids) {
        append(&event, ",\"token_ids\":[", 14);
        for (uint32_t i = 0; i < tokens; i++) {
            n = snprintf(text, sizeof text, "%s%u", i ? "," : "", 32 + (c->sent_tokens + i) % 90);
            append(&event, text, (size_t)n);
        }
        append(&event, "],\"prompt_token_ids\":", 21);
        if (!c->sent_tokens && c->prompt.used) append(&event, c->prompt.data, c->prompt.used);
        else append(&event, "null", 4);
    }
    append(&event, "}],\"usage\":null}\n\n", 18);
    c->sent_tokens += tokens;
    chunk(c, event.data, event.used);
    free(event.data);
    if (last) finish(c);
    note(c, 1, tokens, now_ns());
    return flush(c);
}

static int metrics(Connection *c) {
    char body[2048];
    snprintf(body, sizeof body,
             "vllm:cache_config_info{engine=\"0\",enable_prefix_caching=\"False\"} 1.0\n"
             "vllm:prompt_tokens_total{engine=\"0\"} %llu\nvllm:generation_tokens_total{engine=\"0\"} %llu\n"
             "vllm:prefix_cache_hits_total{engine=\"0\"} 0\nvllm:num_preemptions_total{engine=\"0\"} 0\n"
             "vllm:num_requests_running{engine=\"0\"} %u\nvllm:num_requests_waiting{engine=\"0\"} 0\n"
             "vllm:inter_token_latency_seconds_count{engine=\"0\"} %llu\n"
             "vllm:spec_decode_num_drafts_total{engine=\"0\"} %llu\n"
             "vllm:spec_decode_num_draft_tokens_total{engine=\"0\"} %llu\n"
             "vllm:spec_decode_num_accepted_tokens_total{engine=\"0\"} %llu\n",
             (unsigned long long)totals.prompt, (unsigned long long)totals.output, totals.running,
             (unsigned long long)totals.steps, (unsigned long long)totals.drafts, (unsigned long long)totals.drafted,
             (unsigned long long)totals.accepted);
    return answer(c, "200 OK", "text/plain", body);
}

static uint32_t number_of(const char *body, const char *key, uint32_t otherwise) {
    const char *found = strstr(body, key);
    if (!found) return otherwise;
    found += strlen(key);
    while (*found == ' ' || *found == ':') found++;
    return (uint32_t)strtoul(found, NULL, 10);
}

static int is_true(const char *body, const char *key) {
    const char *found = strstr(body, key);
    if (!found) return 0;
    found += strlen(key);
    while (*found == ' ' || *found == ':') found++;
    return !strncmp(found, "true", 4);
}

static uint64_t arrived_ns; /* when what was read last reached its socket */

static int start(Connection *c, const char *body) {
    static const char head[] =
        "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream; charset=utf-8\r\nTransfer-Encoding: chunked\r\n\r\n";
    const char *prompt = strstr(body, "\"prompt\"");
    c->request = requests++;
    c->max_tokens = number_of(body, "\"max_tokens\"", 16);
    c->sent_tokens = 0;
    c->place = c->request;
    c->prompt.used = 0;
    c->prompt_tokens = 1;
    c->first_id = 0;
    c->with_ids = is_true(body, "\"return_token_ids\"");
    if (prompt) {
        prompt += 8;
        while (*prompt == ' ' || *prompt == ':') prompt++;
        const char *end = *prompt == '[' ? strchr(prompt, ']') : NULL;
        if (end) {
            append(&c->prompt, prompt, (size_t)(end - prompt) + 1);
            c->first_id = (uint32_t)strtoul(prompt + 1, NULL, 10);
            for (const char *p = prompt; p < end; p++) c->prompt_tokens += *p == ',';
        }
    }
    c->streaming = 1;
    totals.running++;
    c->due_ns = arrived_ns + ttft_ns;
    note(c, 0, 0, arrived_ns);
    append(&c->out, head, sizeof head - 1);
    return flush(c);
}

/* Handles what is complete in the input. Returns 0 when the connection is gone. */
static int take(Connection *c) {
    while (c->in.used) {
        char *end = strstr(c->in.data, "\r\n\r\n");
        if (!end) return 1;
        size_t head = (size_t)(end - c->in.data) + 4, length = 0;
        char *field = strcasestr(c->in.data, "\r\ncontent-length:");
        if (field && field < end) length = strtoul(field + 17, NULL, 10);
        if (c->in.used < head + length) return 1;
        char kept = c->in.data[head + length];
        c->in.data[head + length] = 0;
        char *body = c->in.data + head;
        int alive;
        if (!strncmp(c->in.data, "POST /v1/completions", 20)) alive = start(c, body);
        else if (!strncmp(c->in.data, "GET /metrics", 12)) alive = metrics(c);
        else if (!strncmp(c->in.data, "GET /version", 12))
            alive = answer(c, "200 OK", "application/json", "{\"version\":\"0.24.0\"}");
        else if (!strncmp(c->in.data, "GET /v1/models", 14))
            alive = answer(c, "200 OK", "application/json",
                           "{\"object\":\"list\",\"data\":[{\"id\":\"speedbench\",\"object\":\"model\",\"created\":1,"
                           "\"owned_by\":\"vllm\",\"root\":\"m\",\"max_model_len\":65536}]}");
        else if (!strncmp(c->in.data, "GET /health", 11) || !strncmp(c->in.data, "POST /reset", 11))
            alive = answer(c, "200 OK", "text/plain", "");
        else alive = answer(c, "404 Not Found", "application/json", "{}");
        if (!alive) return 0;
        c->in.data[head + length] = kept;
        memmove(c->in.data, c->in.data + head + length, c->in.used - head - length);
        c->in.used -= head + length;
        c->in.data[c->in.used] = 0;
    }
    return 1;
}

/* As recv, and sets arrived_ns. The kernel stamps in wall-clock time; the age of a stamp is the same in any. */
static ssize_t receive(int fd, char *data, size_t size) {
    char control[CMSG_SPACE(sizeof(struct timespec))];
    struct iovec part = {data, size};
    struct msghdr message = {.msg_iov = &part, .msg_iovlen = 1, .msg_control = control, .msg_controllen = sizeof control};
    ssize_t n = recvmsg(fd, &message, 0);
    if (n <= 0) return n;
    struct timespec t, stamp;
    clock_gettime(CLOCK_REALTIME, &t);
    arrived_ns = now_ns();
    struct cmsghdr *found = CMSG_FIRSTHDR(&message);
    if (found && found->cmsg_level == SOL_SOCKET && found->cmsg_type == SCM_TIMESTAMPNS) {
        memcpy(&stamp, CMSG_DATA(found), sizeof stamp);
        int64_t age = (int64_t)(t.tv_sec - stamp.tv_sec) * 1000000000 + (t.tv_nsec - stamp.tv_nsec);
        if (age > 0 && age < 1000000000) arrived_ns -= (uint64_t)age;
    }
    return n;
}

static void readable(Connection *c) {
    char data[65536];
    for (;;) {
        ssize_t n = receive(c->fd, data, sizeof data);
        if (n < 0 && (errno == EAGAIN || errno == EINTR)) break;
        if (n <= 0) {
            drop(c);
            return;
        }
        append(&c->in, data, (size_t)n);
    }
    take(c);
}

static void welcome(int listener) {
    int fd, on = 1;
    while ((fd = accept4(listener, NULL, NULL, SOCK_NONBLOCK)) >= 0) {
        if (fd >= MOST_FDS) {
            close(fd);
            continue;
        }
        setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
        setsockopt(fd, SOL_SOCKET, SO_TIMESTAMPNS, &on, sizeof on);
        Connection *c = calloc(1, sizeof *c);
        if (!c) abort();
        c->fd = fd;
        connections[fd] = c;
        if (fd > most_fd) most_fd = fd;
        struct epoll_event e = {.events = EPOLLIN, .data.fd = fd};
        epoll_ctl(poller, EPOLL_CTL_ADD, fd, &e);
    }
}

static void tick(void) {
    uint64_t now = now_ns();
    for (int fd = 0; fd <= most_fd; fd++) {
        Connection *c = connections[fd];
        if (c && c->streaming && c->due_ns <= now) emit(c);
    }
}

/* Without ticks: every stream whose reader keeps up sends one event. Returns whether any did. */
static int pour(void) {
    int any = 0;
    uint64_t now = now_ns();
    for (int fd = 0; fd <= most_fd; fd++) {
        Connection *c = connections[fd];
        if (c && c->streaming && c->due_ns <= now && !c->out.used) {
            any = 1;
            emit(c);
        }
    }
    return any;
}

static void stop(int number) {
    (void)number;
    if (logged) fclose(logged);
    _exit(0);
}

int main(int argc, char **argv) {
    const char *shape = "2,3";
    int option;
    while ((option = getopt(argc, argv, "s:f:p:k:l:")) != -1) {
        if (option == 's') step_ns = strtoull(optarg, NULL, 10) * 1000u;
        else if (option == 'f') ttft_ns = strtoull(optarg, NULL, 10) * 1000u;
        else if (option == 'p') shape = optarg;
        else if (option == 'k') drafts = (unsigned)atoi(optarg);
        else if (option == 'l') logged = fopen(optarg, "wb");
        else return 2;
    }
    for (const char *p = shape; p && *p && pattern_length < MOST_PATTERN; p = strchr(p, ',') ? strchr(p, ',') + 1 : NULL)
        pattern[pattern_length++] = (unsigned)atoi(p);
    struct rlimit files;
    getrlimit(RLIMIT_NOFILE, &files);
    files.rlim_cur = files.rlim_max;
    setrlimit(RLIMIT_NOFILE, &files);
    signal(SIGTERM, stop);
    signal(SIGINT, stop);

    int listener = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0), on = 1;
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t size = sizeof address;
    setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
    if (bind(listener, (struct sockaddr *)&address, size) || listen(listener, 4096)) return 1;
    getsockname(listener, (struct sockaddr *)&address, &size);
    printf("%d\n", ntohs(address.sin_port));
    fflush(stdout);

    poller = epoll_create1(0);
    struct epoll_event e = {.events = EPOLLIN, .data.fd = listener};
    epoll_ctl(poller, EPOLL_CTL_ADD, listener, &e);
    int timer = -1;
    if (step_ns) {
        timer = timerfd_create(CLOCK_MONOTONIC, TFD_NONBLOCK);
        struct timespec every = {(time_t)(step_ns / 1000000000u), (long)(step_ns % 1000000000u)};
        struct itimerspec spec = {every, every};
        timerfd_settime(timer, 0, &spec, NULL);
        e.data.fd = timer;
        epoll_ctl(poller, EPOLL_CTL_ADD, timer, &e);
    }
    struct epoll_event ready[1024];
    int busy = 0;
    for (;;) {
        int n = epoll_wait(poller, ready, 1024, step_ns ? -1 : busy ? 0 : 1);
        for (int i = 0; i < n; i++) {
            int fd = ready[i].data.fd;
            if (fd == listener) welcome(listener);
            else if (fd == timer) {
                uint64_t expired;
                if (read(timer, &expired, sizeof expired) > 0) tick();
            } else {
                Connection *c = connections[fd];
                if (c && (ready[i].events & EPOLLOUT) && !flush(c)) continue;
                if (c && (ready[i].events & (EPOLLIN | EPOLLHUP | EPOLLERR))) readable(c);
            }
        }
        if (!step_ns) busy = pour();
    }
}
