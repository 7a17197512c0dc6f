/* The subset of the CUDA driver API that targets/cuda/driver.py calls, for a machine without a GPU.

   "Device memory" is host memory with guard bytes around it; a "module" is a shared library made from the kernels'
   own text (device.h).  Work is queued and runs only when somebody waits for it, so that a missing wait shows.
   Every call is logged; any call can be told to fail. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { OK = 0, INVALID_VALUE = 1, OUT_OF_MEMORY = 2, INVALID_IMAGE = 200, INVALID_CONTEXT = 201, INVALID_HANDLE = 400,
       NOT_FOUND = 500, ILLEGAL_ADDRESS = 700, LAUNCH_FAILED = 719, CAPTURE_INVALID = 901 };
enum { GUARD = 64, MOST_ARGUMENTS = 64 };

typedef int (*runner)(void **, int, int, int);
typedef struct { runner run; const int *sizes; } function_t;
typedef struct { void *library; int functions; function_t *made[256]; } module_t;
typedef struct { enum { LAUNCH, WRITE, READ, FILL, MARK } kind; function_t *function; int x, y, threads;
                 uint64_t arguments[MOST_ARGUMENTS]; void *to; const void *from; size_t size; } work_t;
typedef struct { work_t *work; int count, room; } queue_t;
typedef struct { queue_t queue, captured; int capturing, error; } stream_t;
typedef struct block { uint8_t *start; size_t size; struct block *next; } block_t;

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static char *record;
static size_t recorded, room;
static char failing[64];
static int failing_code, failing_after;
static block_t *blocks;
static size_t used, limit = (size_t)1 << 34;
static int live_modules, live_streams, live_graphs, live_executables, live_events, initialized, devices = 1;
static int architecture = 80, context_object;
static __thread void *contexts[16];
static __thread int depth;

/* For the test. */
const char *fake_log(void) { return record ? record : ""; }
void fake_forget(void) { recorded = 0; if (record) record[0] = 0; }
void fake_fail(const char *name, int code, int after) {
  snprintf(failing, sizeof failing, "%s", name), failing_code = code, failing_after = after;
}
void fake_limit(size_t bytes) { limit = bytes; }
void fake_device(int count, int number) { devices = count, architecture = number; }
int fake_live(void) {
  int count = live_modules + live_streams + live_graphs + live_executables + live_events;
  for (block_t *b = blocks; b; b = b->next) ++count;
  return count;
}

static int enter(const char *name, int needs_context) {
  size_t length = strlen(name);
  pthread_mutex_lock(&lock);
  if (recorded + length + 2 > room) record = realloc(record, room = 2 * room + length + 4096);
  memcpy(record + recorded, name, length), recorded += length;
  record[recorded++] = '\n', record[recorded] = 0;
  if (!strcmp(failing, name) && failing_after-- == 0) return failing_code;
  if (!initialized && strcmp(name, "cuInit")) return 3;
  return needs_context && !depth ? INVALID_CONTEXT : OK;
}
static int leave(int code) { pthread_mutex_unlock(&lock); return code; }
#define ENTER(context) do { int code_ = enter(__func__, context); if (code_) return leave(code_); } while (0)

static block_t *block_of(const void *p, size_t size) {
  for (block_t *b = blocks; b; b = b->next)
    if ((uint8_t *)p >= b->start && (uint8_t *)p + size <= b->start + b->size) return b;
  return NULL;
}
static int whole(const block_t *b) {
  for (int i = 0; i < GUARD; ++i)
    if (b->start[-1 - i] != 0xA5 || b->start[b->size + i] != 0xA5) return 0;
  return 1;
}
static work_t *push(queue_t *q) {
  if (q->count == q->room) q->work = realloc(q->work, sizeof *q->work * (q->room = 2 * q->room + 16));
  return memset(&q->work[q->count++], 0, sizeof *q->work);
}
static int run(const work_t *w) {
  void *places[MOST_ARGUMENTS];
  switch (w->kind) {
  case LAUNCH:
    for (int i = 0; i < MOST_ARGUMENTS; ++i) places[i] = (void *)&w->arguments[i];
    return w->function->run(places, w->x, w->y, w->threads) ? LAUNCH_FAILED : OK;
  case FILL: memset(w->to, (int)(intptr_t)w->from, w->size); return OK;
  case WRITE: memcpy(w->to, w->from, w->size); free((void *)w->from); return OK;
  case READ: memcpy(w->to, w->from, w->size); return OK;
  default: return OK;
  }
}
static int drain(stream_t *s) {
  for (int i = 0; i < s->queue.count && !s->error; ++i) s->error = run(&s->queue.work[i]);
  s->queue.count = 0;
  for (block_t *b = blocks; b && !s->error; b = b->next)
    if (!whole(b)) s->error = ILLEGAL_ADDRESS;
  return s->error;
}

int cuGetErrorString(int code, const char **text) {
  *text = code == OUT_OF_MEMORY ? "out of memory" : code == INVALID_CONTEXT ? "invalid device context" :
          code == ILLEGAL_ADDRESS ? "an illegal memory access was encountered" :
          code == LAUNCH_FAILED ? "unspecified launch failure" : "some error";
  return OK;
}
int cuInit(unsigned flags) { ENTER(0); initialized = 1; return leave(flags ? INVALID_VALUE : OK); }
int cuDeviceGetCount(int *count) { ENTER(0); *count = devices; return leave(OK); }
int cuDeviceGet(int *device, int ordinal) { ENTER(0); *device = ordinal; return leave(ordinal < devices ? OK : 101); }
int cuDeviceGetAttribute(int *value, int attribute, int device) {
  ENTER(0);
  *value = attribute == 75 ? architecture / 10 : attribute == 76 ? architecture % 10 : 0;
  return leave(device ? 101 : OK);
}
int cuDeviceGetName(char *name, int size, int device) {
  ENTER(0);
  snprintf(name, size, "Fake %d", device);
  return leave(OK);
}
int cuDevicePrimaryCtxRetain(void **context, int device) {
  ENTER(0);
  *context = &context_object;
  return leave(device ? 101 : OK);
}
int cuCtxPushCurrent_v2(void *context) {
  ENTER(0);
  if (context != &context_object || depth == 16) return leave(INVALID_CONTEXT);
  contexts[depth++] = context;
  return leave(OK);
}
int cuCtxPopCurrent_v2(void **context) {
  ENTER(1);
  *context = contexts[--depth];
  return leave(OK);
}
int cuModuleLoadData(void **module, const void *image) {
  char path[] = "/tmp/fake-module-XXXXXX";
  uint64_t size;
  ENTER(1);
  /* The image is its size and a shared library. */
  memcpy(&size, image, sizeof size);
  int file = mkstemp(path);
  if (file < 0 || write(file, (const char *)image + sizeof size, size) != (ssize_t)size) return leave(INVALID_IMAGE);
  close(file);
  module_t *made = calloc(1, sizeof *made);
  made->library = dlopen(path, RTLD_NOW | RTLD_LOCAL);
  unlink(path);
  if (!made->library) return free(made), leave(INVALID_IMAGE);
  ++live_modules, *module = made;
  return leave(OK);
}
int cuModuleUnload(module_t *module) {
  ENTER(1);
  for (int i = 0; i < module->functions; ++i) free(module->made[i]);
  dlclose(module->library), free(module), --live_modules;
  return leave(OK);
}
int cuModuleGetFunction(void **function, module_t *module, const char *name) {
  char text[256];
  ENTER(1);
  function_t *made = calloc(1, sizeof *made);
  snprintf(text, sizeof text, "%s_run", name), made->run = (runner)dlsym(module->library, text);
  snprintf(text, sizeof text, "%s_sizes", name), made->sizes = dlsym(module->library, text);
  if (!made->run || !made->sizes || module->functions == 256) return free(made), leave(NOT_FOUND);
  module->made[module->functions++] = *function = made;
  return leave(OK);
}
int cuMemAlloc_v2(uint64_t *address, size_t size) {
  ENTER(1);
  if (!size) return leave(INVALID_VALUE);
  if (used + size > limit) return leave(OUT_OF_MEMORY);
  size_t padded = (size + GUARD + 255) / 256 * 256 + 512;
  uint8_t *memory = aligned_alloc(256, padded);
  memset(memory, 0xA5, padded);
  block_t *b = malloc(sizeof *b);
  *b = (block_t){memory + 256, size, blocks}, blocks = b, used += size;
  memset(b->start, 0xCD, size);
  *address = (uint64_t)b->start;
  return leave(OK);
}
int cuMemFree_v2(uint64_t address) {
  ENTER(1);
  for (block_t **b = &blocks; *b; b = &(*b)->next)
    if ((uint64_t)(*b)->start == address) {
      block_t *gone = *b;
      int fine = whole(gone);
      *b = gone->next, used -= gone->size, free(gone->start - 256), free(gone);
      return leave(fine ? OK : ILLEGAL_ADDRESS);
    }
  return leave(INVALID_VALUE);
}
int cuMemcpyHtoDAsync_v2(uint64_t to, const void *from, size_t size, stream_t *stream) {
  ENTER(1);
  if (!block_of((void *)to, size)) return leave(INVALID_VALUE);
  if (stream->capturing) return leave(CAPTURE_INVALID);
  work_t *w = push(&stream->queue);
  w->kind = WRITE, w->to = (void *)to, w->size = size, w->from = memcpy(malloc(size + 1), from, size);
  return leave(OK);
}
int cuMemcpyDtoHAsync_v2(void *to, uint64_t from, size_t size, stream_t *stream) {
  ENTER(1);
  if (!block_of((void *)from, size)) return leave(INVALID_VALUE);
  if (stream->capturing) return leave(CAPTURE_INVALID);
  work_t *w = push(&stream->queue);
  w->kind = READ, w->to = to, w->from = (void *)from, w->size = size;
  return leave(OK);
}
int cuMemsetD8Async(uint64_t to, unsigned char value, size_t size, stream_t *stream) {
  ENTER(1);
  if (!block_of((void *)to, size)) return leave(INVALID_VALUE);
  work_t *w = push(stream->capturing ? &stream->captured : &stream->queue);
  w->kind = FILL, w->to = (void *)to, w->from = (void *)(intptr_t)value, w->size = size;
  return leave(OK);
}
int cuStreamCreate(void **stream, unsigned flags) {
  ENTER(1);
  ++live_streams, *stream = calloc(1, sizeof(stream_t));
  return leave(flags > 1 ? INVALID_VALUE : OK);
}
int cuStreamDestroy_v2(stream_t *stream) {
  ENTER(1);
  int code = drain(stream);
  free(stream->queue.work), free(stream->captured.work), free(stream), --live_streams;
  return leave(code);
}
int cuStreamSynchronize(stream_t *stream) {
  ENTER(1);
  return leave(stream->capturing ? CAPTURE_INVALID : drain(stream));
}
int cuStreamBeginCapture_v2(stream_t *stream, int mode) {
  ENTER(1);
  if (stream->capturing || mode < 0 || mode > 2) return leave(INVALID_VALUE);
  stream->capturing = 1;
  return leave(OK);
}
int cuStreamEndCapture(stream_t *stream, void **graph) {
  /* A capture that fails to end is over all the same. */
  if (!strcmp(failing, __func__) && !failing_after) stream->capturing = stream->captured.count = 0;
  ENTER(1);
  if (!stream->capturing) return leave(CAPTURE_INVALID);
  queue_t *made = malloc(sizeof *made);
  *made = stream->captured, stream->captured = (queue_t){0}, stream->capturing = 0;
  ++live_graphs, *graph = made;
  return leave(OK);
}
int cuLaunchKernel(function_t *function, unsigned x, unsigned y, unsigned z, unsigned threads, unsigned ty, unsigned tz,
                   unsigned shared, stream_t *stream, void **parameters, void **extra) {
  ENTER(1);
  if (!x || !y || y > 65535 || z != 1 || !threads || threads > 1024 || ty != 1 || tz != 1 || shared || extra)
    return leave(INVALID_VALUE);
  work_t *w = push(stream->capturing ? &stream->captured : &stream->queue);
  w->kind = LAUNCH, w->function = function, w->x = x, w->y = y, w->threads = threads;
  for (int i = 0; function->sizes[i]; ++i) {
    if (i == MOST_ARGUMENTS) return leave(INVALID_VALUE);
    memcpy(&w->arguments[i], parameters[i], function->sizes[i]);
  }
  return leave(OK);
}
int cuGraphInstantiateWithFlags(void **executable, queue_t *graph, unsigned long long flags) {
  ENTER(1);
  queue_t *made = malloc(sizeof *made);
  *made = (queue_t){malloc(sizeof(work_t) * graph->count + 1), graph->count, graph->count};
  memcpy(made->work, graph->work, sizeof(work_t) * graph->count);
  ++live_executables, *executable = made;
  return leave(flags ? INVALID_VALUE : OK);
}
int cuGraphDestroy(queue_t *graph) { ENTER(1); free(graph->work), free(graph), --live_graphs; return leave(OK); }
int cuGraphExecDestroy(queue_t *graph) {
  ENTER(1);
  free(graph->work), free(graph), --live_executables;
  return leave(OK);
}
int cuGraphLaunch(const queue_t *graph, stream_t *stream) {
  ENTER(1);
  if (stream->capturing) return leave(CAPTURE_INVALID);
  for (int i = 0; i < graph->count; ++i) *push(&stream->queue) = graph->work[i];
  return leave(OK);
}
typedef struct { stream_t *stream; } event_t;
int cuEventCreate(void **event, unsigned flags) {
  ENTER(1);
  ++live_events, *event = calloc(1, sizeof(event_t));
  return leave(flags ? INVALID_VALUE : OK);
}
int cuEventDestroy_v2(event_t *event) { ENTER(1); free(event), --live_events; return leave(OK); }
int cuEventRecord(event_t *event, stream_t *stream) { ENTER(1); event->stream = stream; return leave(OK); }
int cuEventSynchronize(event_t *event) { ENTER(1); return leave(event->stream ? drain(event->stream) : OK); }
int cuEventElapsedTime(float *milliseconds, const event_t *start, const event_t *end) {
  ENTER(1);
  *milliseconds = 0.5f;
  return leave(start->stream && start->stream == end->stream ? OK : INVALID_HANDLE);
}
