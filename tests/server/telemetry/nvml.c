// The part of NVIDIA's management library that the metrics of GPUs ask, for two GPUs that do not exist. The second
// one is a share of a GPU, which has no power and no utilisation of its own.

#include <string.h>

enum { SUCCESS = 0, INVALID_ARGUMENT = 2, NOT_SUPPORTED = 3, LOST = 15 };

typedef struct { unsigned long long total, free, used; } Memory;
typedef struct { unsigned int gpu, memory; } Utilisation;

static int numbers[2] = {0, 1};

static int number(void *device) { return *(int *)device; }

int nvmlInitWithFlags(unsigned int flags) { return SUCCESS; }
int nvmlInit_v2(void) { return SUCCESS; }
int nvmlShutdown(void) { return SUCCESS; }
const char *nvmlErrorString(int result) { return result == NOT_SUPPORTED ? "Not Supported" : "An error"; }

int nvmlDeviceGetCount_v2(unsigned int *count) {
  *count = 2;
  return SUCCESS;
}

int nvmlDeviceGetHandleByIndex_v2(unsigned int index, void **device) {
  if (index > 1) return INVALID_ARGUMENT;
  *device = &numbers[index];
  return SUCCESS;
}

int nvmlDeviceGetName(void *device, char *name, unsigned int length) {
  strncpy(name, number(device) ? "Share of a GPU" : "Whole GPU", length);
  return SUCCESS;
}

int nvmlDeviceGetMemoryInfo(void *device, Memory *memory) {
  memory->total = 80ULL << 30;
  memory->used = (number(device) ? 3ULL : 20ULL) << 30;
  memory->free = memory->total - memory->used;
  return SUCCESS;
}

int nvmlDeviceGetUtilizationRates(void *device, Utilisation *found) {
  if (number(device)) return NOT_SUPPORTED;
  found->gpu = 37;
  found->memory = 11;
  return SUCCESS;
}

int nvmlDeviceGetTemperature(void *device, int sensor, unsigned int *celsius) {
  if (sensor != 0) return INVALID_ARGUMENT;
  *celsius = 55 + number(device);
  return SUCCESS;
}

int nvmlDeviceGetPowerUsage(void *device, unsigned int *milliwatts) {
  if (number(device)) return NOT_SUPPORTED;
  *milliwatts = 312500;
  return SUCCESS;
}
