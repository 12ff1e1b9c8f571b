// A libcuda that computes nothing, for `stubbed_driver.py`: with it Triton compiles and launches without a GPU.
//
// Every launch becomes a line of JSON in the file that STUB_DRIVER_LOG names: kernel, grid, threads, stream, and the
// size and the bytes of each parameter as the kernel's own code declares them.
#include <elf.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { OK = 0, MAX_PARAMETERS = 256 };

typedef struct {
  const unsigned char* image;
} Module;

typedef struct {
  char name[256];
  int count;
  unsigned size[MAX_PARAMETERS];
} Function;

// CUlaunchConfig
typedef struct {
  unsigned grid[3], block[3], shared;
  void *stream, *attributes;
  unsigned attribute_count;
} Config;

int cuInit(unsigned flags) { return OK; }
int cuDriverGetVersion(int* version) { return *version = 13000, OK; }
int cuGetErrorString(int error, const char** text) { return *text = "error of the stub", OK; }
int cuDeviceGet(int* device, int ordinal) { return *device = ordinal, OK; }

int cuDeviceGetAttribute(int* value, int attribute, int device) {
  switch (attribute) {
    case 8: *value = 48 << 10; break;    // shared memory of a block
    case 10: *value = 32; break;         // threads of a warp
    case 16: *value = 132; break;        // multiprocessors
    case 97: *value = 227 << 10; break;  // shared memory of a block that asks for more
    default: *value = 1024;
  }
  return OK;
}

int cuCtxGetCurrent(void** context) { return *context = (void*)1, OK; }
int cuCtxSetCurrent(void* context) { return OK; }
int cuCtxGetDevice(int* device) { return *device = 0, OK; }
int cuCtxGetLimit(size_t* value, int limit) { return *value = 1 << 20, OK; }
int cuCtxSetLimit(int limit, size_t value) { return OK; }
int cuDevicePrimaryCtxRetain(void** context, int device) { return *context = (void*)1, OK; }
int cuStreamIsCapturing(void* stream, int* status) { return *status = 0, OK; }
int cuFuncSetCacheConfig(void* function, int config) { return OK; }
int cuFuncSetAttribute(void* function, int attribute, int value) { return OK; }
int cuFuncGetAttribute(int* value, int attribute, void* function) { return *value = attribute == 0 ? 1024 : 0, OK; }
int cuOccupancyMaxActiveClusters(int* count, void* function, void* config) { return *count = 1, OK; }
int cuTensorMapEncodeTiled(void) { return OK; }
int cuTensorMapEncodeIm2col(void) { return OK; }
int cuLaunchKernel(void) { return OK; }

int cuPointerGetAttribute(void* data, int attribute, unsigned long long pointer) {
  return memcpy(data, &pointer, sizeof pointer), OK;
}

int cuModuleLoadData(void** module, const void* image) {
  Module* loaded = malloc(sizeof *loaded);
  loaded->image = image;
  return *module = loaded, OK;
}

int cuModuleUnload(void* module) { return OK; }

// Reads the parameters' sizes from the section .nv.info.KERNEL: entries of a format, an attribute and a value.
static void read_parameters(Function* function, const unsigned char* at, const unsigned char* end) {
  enum { SIZED_VALUE = 4, PARAMETER = 0x17 };
  while (at < end) {
    if (at[0] != SIZED_VALUE) {
      at += 4;
      continue;
    }
    uint16_t length, ordinal;
    uint32_t flags;
    memcpy(&length, at + 2, sizeof length);
    if (at[1] == PARAMETER) {
      memcpy(&ordinal, at + 8, sizeof ordinal);
      memcpy(&flags, at + 12, sizeof flags);
      function->size[ordinal] = flags >> 18;
      if (ordinal >= function->count) function->count = ordinal + 1;
    }
    at += 4 + length;
  }
}

int cuModuleGetFunction(void** found, void* module, const char* name) {
  Function* function = calloc(1, sizeof *function);
  snprintf(function->name, sizeof function->name, "%s", name);
  char wanted[300];
  snprintf(wanted, sizeof wanted, ".nv.info.%s", name);
  const unsigned char* image = ((Module*)module)->image;
  const Elf64_Ehdr* header = (const void*)image;
  const Elf64_Shdr* sections = (const void*)(image + header->e_shoff);
  const char* names = (const char*)image + sections[header->e_shstrndx].sh_offset;
  for (int i = 0; i < header->e_shnum; ++i) {
    const unsigned char* start = image + sections[i].sh_offset;
    if (!strcmp(names + sections[i].sh_name, wanted)) read_parameters(function, start, start + sections[i].sh_size);
  }
  return *found = function, OK;
}

int cuLaunchKernelEx(const Config* config, void* launched, void** parameters, void** extra) {
  const Function* function = launched;
  FILE* log = fopen(getenv("STUB_DRIVER_LOG"), "a");
  fprintf(log, "{\"kernel\": \"%s\", \"grid\": [%u, %u, %u], \"threads\": %u, \"stream\": %llu, \"parameters\": [",
          function->name, config->grid[0], config->grid[1], config->grid[2], config->block[0],
          (unsigned long long)config->stream);
  for (int i = 0; i < function->count; ++i) {
    unsigned long long value = 0;
    memcpy(&value, parameters[i], function->size[i] < 8 ? function->size[i] : 8);
    fprintf(log, "%s[%u, %llu]", i ? ", " : "", function->size[i], value);
  }
  fprintf(log, "]}\n");
  return fclose(log), OK;
}
