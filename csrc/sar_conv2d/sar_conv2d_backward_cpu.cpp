#include "sar_conv2d/sar_conv2d.h"
namespace clipweather { namespace CLIPWEATHER_ISA { void sar_conv2d_backward(const SarConv2dBackwardArgs&) {} } }
