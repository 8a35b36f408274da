/* A stand-in for libnvidia-ml.so.1, told by FAKE_NVML what there is: a word for each card, separated
   by commas, such as H100,T4:excl,H100:mig2,H100:used70. What follows the model:

   lost, noperm   it cannot be opened         excl, proh   its compute mode
   mig<N>         divided into N slices       used<N>      GB of its 80 that process 1 holds      */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

typedef int Result;
typedef struct card {
    int number, slice; /* slice: -1 for a whole card */
    char model[64], flags[64];
} Card;

enum { OK = 0, INVALID = 2, UNSUPPORTED = 3, NO_PERMISSION = 4, NOT_FOUND = 6, SHORT = 7, LOST = 15 };

static Card cards[16], slices[16][8];
static int count;

static int has(Card *card, const char *flag) { return strstr(card->flags, flag) != NULL; }

static int number_after(Card *card, const char *flag) {
    char *place = strstr(card->flags, flag);
    return place ? atoi(place + strlen(flag)) : 0;
}

static int slices_of(Card *card) { return card->slice < 0 ? number_after(card, "mig") : 0; }

Result nvmlInit_v2(void) {
    const char *said = getenv("FAKE_NVML"), *result = getenv("FAKE_NVML_INIT");
    char words[1024], *rest;
    snprintf(words, sizeof words, "%s", said ? said : "");
    count = 0;
    for (char *word = strtok_r(words, ",", &rest); word; word = strtok_r(NULL, ",", &rest)) {
        Card *card = &cards[count];
        char *colon = strchr(word, ':');
        snprintf(card->flags, sizeof card->flags, "%s", colon ? colon + 1 : "");
        if (colon) *colon = 0;
        snprintf(card->model, sizeof card->model, "%s", word);
        card->number = count, card->slice = -1;
        for (int k = 0; k < slices_of(card); k++) {
            slices[count][k] = *card;
            slices[count][k].slice = k;
        }
        count++;
    }
    return result ? atoi(result) : OK;
}

Result nvmlInitWithFlags(unsigned flags) { (void)flags; return nvmlInit_v2(); }

Result nvmlShutdown(void) { return OK; }

const char *nvmlErrorString(Result result) {
    switch (result) {
    case LOST: return "GPU is lost";
    case NO_PERMISSION: return "Insufficient Permissions";
    case NOT_FOUND: return "Not Found";
    default: return "Error";
    }
}

Result nvmlDeviceGetCount_v2(unsigned *answer) { *answer = count; return OK; }

static Result opened(Card *card, Card **answer) {
    if (has(card, "noperm")) return NO_PERMISSION;
    if (has(card, "lost")) return LOST;
    *answer = card;
    return OK;
}

Result nvmlDeviceGetHandleByIndex_v2(unsigned i, Card **answer) {
    return (int)i < count ? opened(&cards[i], answer) : INVALID;
}

Result nvmlDeviceGetUUID(Card *card, char *text, unsigned size) {
    if (card->slice < 0)
        snprintf(text, size, "GPU-0000000%d-1111-4222-8333-bbbbbbbbbbbb", card->number);
    else
        snprintf(text, size, "MIG-0000000%d-000%d-4000-8000-aaaaaaaaaaaa", card->number, card->slice);
    return OK;
}

Result nvmlDeviceGetHandleByUUID(const char *wanted, Card **answer) {
    char uuid[96];
    for (int i = 0; i < count; i++) {
        nvmlDeviceGetUUID(&cards[i], uuid, sizeof uuid);
        if (!strcmp(uuid, wanted)) return opened(&cards[i], answer);
        for (int k = 0; k < slices_of(&cards[i]); k++) {
            nvmlDeviceGetUUID(&slices[i][k], uuid, sizeof uuid);
            if (!strcmp(uuid, wanted)) return opened(&slices[i][k], answer);
        }
    }
    return NOT_FOUND;
}

Result nvmlDeviceGetName(Card *card, char *text, unsigned size) {
    snprintf(text, size, card->slice < 0 ? "%s" : "%s MIG 1g.10gb", card->model);
    return OK;
}

typedef struct {
    char legacy[16];
    unsigned domain, bus, device, id, subsystem;
    char text[32];
} Bus;

Result nvmlDeviceGetPciInfo_v3(Card *card, Bus *bus) { /* the last is the first on the bus */
    memset(bus, 0, sizeof *bus);
    snprintf(bus->text, sizeof bus->text, "00000000:%02X:00.0", 0x10 * (8 - card->number));
    return OK;
}

Result nvmlDeviceGetCudaComputeCapability(Card *card, int *major, int *minor) {
    int old = strstr(card->model, "T4") != NULL;
    *major = old ? 7 : 9, *minor = old ? 5 : 0;
    return OK;
}

Result nvmlDeviceGetComputeMode(Card *card, int *mode) {
    *mode = has(card, "excl") ? 3 : has(card, "proh") ? 2 : 0;
    return OK;
}

Result nvmlDeviceGetMigMode(Card *card, unsigned *now, unsigned *later) {
    if (card->slice >= 0) return UNSUPPORTED;
    *now = *later = has(card, "mig");
    return OK;
}

Result nvmlDeviceGetMaxMigDeviceCount(Card *card, unsigned *answer) {
    *answer = has(card, "mig") ? 7 : 0;
    return OK;
}

Result nvmlDeviceGetMigDeviceHandleByIndex(Card *card, unsigned k, Card **answer) {
    if ((int)k >= slices_of(card)) return NOT_FOUND;
    *answer = &slices[card->number][k];
    return OK;
}

typedef struct {
    unsigned long long total, free, used;
} Memory;

Result nvmlDeviceGetMemoryInfo(Card *card, Memory *memory) {
    memory->total = (card->slice < 0 ? 80 : 10) * 1000000000ull;
    memory->used = number_after(card, "used") * 1000000000ull;
    memory->free = memory->total - memory->used;
    return OK;
}

typedef struct {
    unsigned pid;
    unsigned long long used;
    unsigned instance, part;
} Process;

Result nvmlDeviceGetComputeRunningProcesses_v3(Card *card, unsigned *size, Process *processes) {
    unsigned given = *size;
    *size = has(card, "used");
    if (!*size) return OK;
    if (!given) return SHORT;
    processes[0] = (Process){1, number_after(card, "used") * 1000000000ull, ~0u, ~0u};
    return OK;
}
