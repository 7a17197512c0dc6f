/* A plug-in of QEMU (API version 1, since 4.2): how many instructions an emulated program executes.
   Declared here are the few functions of its interface, so that no header of QEMU is needed. */

#include <inttypes.h>
#include <stddef.h>
#include <stdio.h>

struct qemu_plugin_tb;
extern size_t qemu_plugin_tb_n_insns(const struct qemu_plugin_tb *tb);
extern void qemu_plugin_register_vcpu_tb_trans_cb(uint64_t id, void (*f)(uint64_t, struct qemu_plugin_tb *));
extern void qemu_plugin_register_vcpu_tb_exec_cb(
    struct qemu_plugin_tb *tb, void (*f)(unsigned int, void *), int flags, void *data);
extern void qemu_plugin_register_atexit_cb(uint64_t id, void (*f)(uint64_t, void *), void *data);

int qemu_plugin_version = 1;

static uint64_t executed;

static void add(unsigned int cpu, void *count)
{
    (void)cpu;
    executed += (uintptr_t)count;
}

static void translated(uint64_t id, struct qemu_plugin_tb *tb)
{
    (void)id;
    qemu_plugin_register_vcpu_tb_exec_cb(tb, add, 0, (void *)(uintptr_t)qemu_plugin_tb_n_insns(tb));
}

static void finished(uint64_t id, void *data)
{
    (void)id;
    (void)data;
    fprintf(stderr, "instructions %" PRIu64 "\n", executed);
}

int qemu_plugin_install(uint64_t id, const void *info, int argc, char **argv)
{
    (void)info;
    (void)argc;
    (void)argv;
    qemu_plugin_register_vcpu_tb_trans_cb(id, translated);
    qemu_plugin_register_atexit_cb(id, finished, NULL);
    return 0;
}
